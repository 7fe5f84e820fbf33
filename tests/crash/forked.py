"""Runs `jmapfs` by forking a process that has imported it: in 30 ms instead of half a second.

A trap kills such a process at a call of a function, or at a moment. The calls of each module are
counted in a first run without a trap, so that later traps are spread over all modules.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeAlias

from tests.mounts import COMMAND_SECONDS, Home, Result

_PROGRAM = "from tests.crash.forked import serve; serve()"
_ROOT = Path(__file__).parents[2]

Calls: TypeAlias = dict[str, int]
"""How often functions of each module were called or resumed."""


@dataclass(frozen=True)
class Trap:
    """SIGKILL at the `call`th call in a module of jmapfs, or `seconds` after the start."""

    module: str = ""
    call: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.module} call {self.call}" if self.module else f"{self.seconds:.3f} s"


def random_trap(source: random.Random, calls: Calls, seconds: float) -> Trap:
    """Return a trap at a call in a random module, or, one time in four, at a random moment."""
    if source.random() < 0.25:
        return Trap(seconds=source.uniform(0.0, seconds))
    module = source.choice(sorted(calls))
    return Trap(module, source.randint(1, calls[module]))


class Forker:
    """The process that forks. It is for one thread at a time."""

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.ask("ready") is True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(10)

    @property
    def pid(self) -> int:
        """The process; those that it forks inherit its limits."""
        return self._process.pid

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a function of the process that forks."""
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


@dataclass
class ForkedProcess:
    """A command that was started; `output` is the directory of what it prints."""

    forker: Forker
    pid: int
    output: Path

    def __post_init__(self) -> None:
        self._pidfd = os.pidfd_open(self.pid)
        self._code: int | None = None

    def ended(self, seconds: float = 0.0) -> bool:
        """Wait until the process has ended; return False if it has not in that time."""
        return self._code is not None or bool(select.select([self._pidfd], [], [], seconds)[0])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, also to a process that has just ended."""
        signal.pidfd_send_signal(self._pidfd, number)

    def result(self, seconds: float = COMMAND_SECONDS) -> Result:
        """Wait for the end; return the exit code, or the negative number of the signal."""
        if self._code is None:
            if not self.ended(seconds):
                waiting = self._waiting_for()
                self.signal(signal.SIGKILL)
                raise TimeoutError(
                    f"a command did not end in {seconds} s: {waiting}{self._read('2')}"
                )
            self._code = self.forker.ask("wait", self.pid)
            os.close(self._pidfd)
        return Result(self._code, self._read("1"), self._read("2"))

    def was_trapped(self, seconds: float = COMMAND_SECONDS) -> bool:
        """Wait for the end; return whether it was killed. No other signal is expected."""
        code = self.result(seconds).exit_code
        assert code >= 0 or code == -signal.SIGKILL
        return code < 0

    def calls(self) -> Calls:
        """Return the calls that a process without a trap has counted."""
        calls: Calls = json.loads(self._read("calls"))
        return calls

    def _waiting_for(self) -> str:
        """Return what each thread does in the kernel."""
        found = ""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            for name in ("comm", "status", "stack"):
                with suppress(OSError):
                    text = (task / name).read_text()
                    found += text if name != "status" else text.splitlines()[2] + "\n"
        return found

    def _read(self, name: str) -> str:
        return (self.output / name).read_text(errors="replace")


@dataclass
class ForkedHome(Home):
    """A home in which commands are forked."""

    forker: Forker = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._outputs = self.directory / "outputs"
        self._outputs.mkdir(exist_ok=True)
        self._number = 0

    def start(
        self, *arguments: str | Path, trap: Trap | None = None, count_calls: bool = False
    ) -> ForkedProcess:
        """Start `jmapfs` with these arguments."""
        self._number += 1
        output = self._outputs / str(self._number)
        output.mkdir()
        # A trap may come before they are opened.
        for name in ("1", "2"):
            (output / name).touch()
        traced = {"module": trap.module, "call": trap.call} if trap and trap.module else None
        pid = self.forker.ask(
            "fork", list(map(str, arguments)), self.environment, str(output), traced, count_calls
        )
        process = ForkedProcess(self.forker, pid, output)
        if trap and not trap.module and not process.ended(trap.seconds):
            process.signal(signal.SIGKILL)
        return process

    def run(self, *arguments: str | Path, seconds: float = COMMAND_SECONDS) -> Result:
        """Run `jmapfs` with these arguments to its end."""
        return self.start(*arguments).result(seconds)


# --- In the process that forks


def serve() -> None:
    """Answer requests until stdin is closed."""
    import importlib

    for command in ("mount", "freeze", "prefetch", "snapshot", "snapshots", "status", "verify"):
        importlib.import_module(f"jmapfs.cli.{command}_command")
    importlib.import_module("jmapfs.daemon.daemon")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(_METHODS[method](*arguments)), flush=True)


def _fork(
    arguments: list[str],
    environment: Mapping[str, str],
    output: str,
    trap: dict[str, Any] | None,
    count_calls: bool,  # noqa: FBT001 - a message
) -> int:
    if (pid := os.fork()) != 0:
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        for number, path in ((0, os.devnull), (1, f"{output}/1"), (2, f"{output}/2")):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.dup2(descriptor, number)
            os.close(descriptor)
        counter = _CallCounter(trap) if trap or count_calls else None
        code = _run(arguments)
        if counter is not None and count_calls:
            sys.settrace(None)
            Path(output, "calls").write_text(json.dumps(counter.calls))
    finally:
        os._exit(code)


def _run(arguments: list[str]) -> int:
    from jmapfs.cli.main import main

    sys.argv = ["jmapfs", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class _CallCounter:
    """Counts the calls of functions of jmapfs by module, in all threads, and is the trap."""

    def __init__(self, trap: dict[str, Any] | None) -> None:
        self.calls: Calls = {}
        self._trap = trap or {"module": "", "call": 0}
        self._names: dict[str, str] = {}
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        del event, argument
        path = frame.f_code.co_filename
        name = self._names.get(path)
        if name is None:
            _, found, rest = path.rpartition("/jmapfs/")
            name = self._names[path] = rest.removesuffix(".py") if found else ""
        if name:
            count = self.calls[name] = self.calls.get(name, 0) + 1
            if name == self._trap["module"] and count == self._trap["call"]:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


_METHODS: dict[str, Callable[..., Any]] = {"ready": lambda: True, "fork": _fork, "wait": _wait}
