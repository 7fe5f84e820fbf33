"""Runs `jmapfs` and records which of its modules are entered: `python -m tests.bench.tracer`.

The first argument is the file descriptor of a connected socket, the others are the command line.
The requests on it are the lines `begin` and `end`. `begin` clears the record, `end` waits until
jmapfs is quiet and answers with the record as JSON. Without any request the record covers the
whole run, and is sent when the command ends.

A module is entered when a Python function written in it is called, or a coroutine written in it
is resumed. Generated methods, such as those of dataclasses, do not count, nor does what runs
because a module is imported.
"""

from __future__ import annotations

import functools
import json
import socket
import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Any, cast

import trio

_PACKAGE = "jmapfs"
_QUIET_SECONDS = 1.0
_DEADLINE_SECONDS = 30.0
_LEAST_POLL = 0.05


class Tracer:
    """Records the modules entered and the jobs handed to worker threads."""

    def __init__(self) -> None:
        self._modules: set[str] = set()
        self._jobs: Counter[str] = Counter()
        self._last = 0.0

    def install(self) -> None:
        """Trace this thread and all threads started from now on."""
        self._count_jobs()
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def clear(self) -> None:
        self._modules, self._jobs = set(), Counter()
        self._last = time.monotonic()

    def wait_until_quiet(self) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while time.monotonic() < min(self._last + _QUIET_SECONDS, deadline):
            time.sleep(_LEAST_POLL)

    def record(self) -> bytes:
        record = {"modules": sorted(self._modules), "jobs": dict(sorted(self._jobs.items()))}
        return json.dumps(record).encode() + b"\n"

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (name := _module_of(frame)) is None:
            return
        self._last = time.monotonic()
        if name not in self._modules and not _during_import(frame):
            self._modules.add(name)

    def _count_jobs(self) -> None:
        run_sync = trio.to_thread.run_sync

        def counted(function: Any, *arguments: Any, **options: Any) -> Any:
            called = function
            while isinstance(called, functools.partial):
                called = called.func
            name = getattr(called, "__qualname__", type(called).__qualname__)
            self._jobs[f"{getattr(called, '__module__', None)}.{name}"] += 1
            return run_sync(function, *arguments, **options)

        trio.to_thread.run_sync = cast("Any", counted)


def _module_of(frame: FrameType) -> str | None:
    """Return the module of jmapfs that the frame's code is written in, if it is one."""
    name = str(frame.f_globals.get("__name__"))
    ours = name.partition(".")[0] == _PACKAGE
    return name if ours and not frame.f_code.co_filename.startswith("<") else None


def _during_import(frame: FrameType) -> bool:
    """Return whether the frame runs because a module of jmapfs is being imported."""
    caller: FrameType | None = frame
    while caller is not None:
        if caller.f_code.co_name == "<module>" and _module_of(caller) is not None:
            return True
        caller = caller.f_back
    return False


def _serve(tracer: Tracer, connection: socket.socket) -> None:
    for request in connection.makefile():
        if request == "begin\n":
            tracer.clear()
            connection.sendall(b"\n")
        else:
            tracer.wait_until_quiet()
            connection.sendall(tracer.record())


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    sys.argv = [_PACKAGE, *sys.argv[2:]]
    tracer = Tracer()
    threading.Thread(target=_serve, args=(tracer, connection), daemon=True).start()
    tracer.install()
    try:
        from jmapfs.__main__ import main as run

        run()
    finally:
        sys.setprofile(None)
        connection.sendall(tracer.record())


if __name__ == "__main__":
    main()
