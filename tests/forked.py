"""Runs programs by forking a process that has imported them: in milliseconds, not in 0.5 s of CPU.

A `Forker` is started once for each test process. For each program it gets a request over a socket,
with the descriptors of the standard streams, and answers with the PID, a pidfd, and a pipe that
gives the exit code. It ends when the socket is closed.

    forker = Forker("tests.server.__main__:main")
    process = forker.fork(["--port", "0"], stdin=…, stdout=…, stderr=…)
"""

from __future__ import annotations

import atexit
import importlib
import os
import pkgutil
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

_ROOT = Path(__file__).parents[1]
_MESSAGE_BYTES = 256 * 1024
_PROGRAM = "import sys; from tests.forked import serve; serve(*sys.argv[1:])"


class _Start(msgspec.Struct):
    """What to run. Arguments and paths may not be text, so all of them are bytes."""

    arguments: Sequence[bytes]
    environment: Mapping[str, bytes]
    directory: bytes
    umask: int


class ForkedProcess:
    """A process that was forked. Call `close` after its end."""

    def __init__(self, pid: int, pidfd: int, exit_pipe: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._exit_pipe = exit_pipe

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; do nothing if the process has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, seconds: float) -> bool:
        """Wait until the process has ended and was reaped; return False if it has not by then."""
        return bool(select.select([self._exit_pipe], [], [], seconds)[0])

    def close(self) -> int:
        """Close the descriptors of an ended process; return its exit code, or minus the signal."""
        code = int(os.read(self._exit_pipe, 20))
        os.close(self._pidfd)
        os.close(self._exit_pipe)
        return code


class Forker:
    """The process that forks `program`, which is named as `module:function`. For all threads.

    It also imports the modules `preloaded`, which the program imports when it needs them.
    """

    def __init__(self, program: str, *preloaded: str) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, program, *preloaded],
                cwd=_ROOT,
                stdin=theirs.fileno(),
            )
        atexit.register(self._close)

    def fork(
        self,
        arguments: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        environment: Mapping[str, str] | None = None,
    ) -> ForkedProcess:
        """Run the program with these arguments, in this directory and with this umask."""
        umask = os.umask(0o077)
        os.umask(umask)
        start = _Start(
            [os.fsencode(argument) for argument in arguments],
            {name: os.fsencode(value) for name, value in (environment or os.environ).items()},
            bytes(Path.cwd()),
            umask,
        )
        with self._lock:
            message = msgspec.json.encode(start)
            socket.send_fds(self._socket, [message], [stdin, stdout, stderr])
            answer, [pidfd, exit_pipe], _, _ = socket.recv_fds(self._socket, 20, 2)
        return ForkedProcess(int(answer), pidfd, exit_pipe)

    def _close(self) -> None:
        self._socket.close()
        self._process.wait()


def run_forked(
    forker: Forker, arguments: Sequence[str], environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[bytes]:
    """Do what `subprocess.run` does with captured output and an empty stdin."""
    out, stdout = os.pipe()
    err, stderr = os.pipe()
    stdin = os.open(os.devnull, os.O_RDONLY)
    try:
        process = forker.fork(
            arguments, stdin=stdin, stdout=stdout, stderr=stderr, environment=environment
        )
    finally:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
    end = time.monotonic() + seconds
    output: dict[int, bytes] = {out: b"", err: b""}
    try:
        with selectors.DefaultSelector() as selector:
            for pipe in output:
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(max(0.0, end - time.monotonic()))
                if not ready:
                    break
                for key, _ in ready:
                    data = os.read(key.fd, 1 << 16)
                    output[key.fd] += data
                    if not data:
                        selector.unregister(key.fileobj)
            in_time = not selector.get_map() and process.wait(max(0.0, end - time.monotonic()))
    finally:
        for pipe in output:
            os.close(pipe)
        if not process.wait(0):
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        code = process.close()
    if not in_time:
        raise subprocess.TimeoutExpired(list(arguments), seconds, output[out], output[err])
    return subprocess.CompletedProcess(list(arguments), code, output[out], output[err])


# --- In the process that forks


def serve(program: str, *preloaded: str) -> None:
    """Fork a process for each request; in the new process, run the program."""
    run: Callable[[], object] = pkgutil.resolve_name(program)
    for module in preloaded:
        importlib.import_module(module)
    # Ctrl-C is for the tests: this process ends after them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: dict[int, tuple[int, int]] = {}
    with socket.socket(fileno=os.dup(0)) as requests, selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in children:
                    _report_end(selector, key.fd, *children.pop(key.fd))
                    continue
                message, streams, _, _ = socket.recv_fds(requests, _MESSAGE_BYTES, 3)
                if not message:
                    return
                exit_pipe, ours = os.pipe()
                pid = os.fork()
                if pid == 0:
                    inherited = [exit_pipe, ours, *children, *(end for _, end in children.values())]
                    for descriptor in inherited:
                        os.close(descriptor)
                    break
                pidfd = os.pidfd_open(pid)
                children[pidfd] = (pid, ours)
                selector.register(pidfd, selectors.EVENT_READ)
                socket.send_fds(requests, [str(pid).encode()], [pidfd, exit_pipe])
                for descriptor in (exit_pipe, *streams):
                    os.close(descriptor)
            else:
                continue
            break
    _run(run, msgspec.json.decode(message, type=_Start), streams)


def _report_end(selector: selectors.BaseSelector, pidfd: int, pid: int, pipe: int) -> None:
    selector.unregister(pidfd)
    os.close(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # The test may not wait for it.
    with suppress(BrokenPipeError):
        os.write(pipe, str(code).encode())
    os.close(pipe)


def _run(run: Callable[[], object], start: _Start, streams: Sequence[int]) -> NoReturn:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(start.directory)
    os.umask(start.umask)
    os.environ.clear()
    os.environ.update({name: os.fsdecode(value) for name, value in start.environment.items()})
    time.tzset()
    sys.argv[1:] = map(os.fsdecode, start.arguments)
    run()
    sys.exit()
