"""Starts servers by forking a process that has imported them: in milliseconds, not in 0.4 s of CPU.

The launcher is started once for each test process. For each server it gets a request over a socket,
with the descriptors for the standard streams, and answers with the PID and a pidfd. It ends when
the socket is closed.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

_ROOT = Path(__file__).parents[2]
_MESSAGE_BYTES = 64 * 1024
_PROGRAM = "from tests.server.launcher import serve; serve()"


class ForkedServer:
    """A process that the launcher has forked; `stdin` and `stdout` are the ends of its pipes."""

    def __init__(self, pid: int, pidfd: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._stdin = stdin
        self.stdout: IO[bytes] = open(stdout, "rb", buffering=0)  # noqa: SIM115

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; do nothing if the process has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, seconds: float) -> bool:
        """Wait until the process has ended; return False if it has not in that time."""
        if not select.select([self._pidfd], [], [], seconds)[0]:
            return False
        # The kernel reaps it a moment later.
        with suppress(ProcessLookupError):
            while True:
                signal.pidfd_send_signal(self._pidfd, 0)
                time.sleep(0.001)
        return True

    def close(self) -> None:
        """Close the pipes of a process that has ended."""
        os.close(self._pidfd)
        os.close(self._stdin)
        self.stdout.close()


class Launcher:
    """The process that forks servers. It ends with this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM], cwd=_ROOT, stdin=theirs.fileno()
            )
        atexit.register(self._close)

    def fork(self, arguments: list[str], variables: dict[str, str], stderr: int) -> ForkedServer:
        """Run `python -m tests.server` with these arguments and variables."""
        stdin, our_stdin = os.pipe()
        our_stdout, stdout = os.pipe()
        try:
            with self._lock:
                message = json.dumps([arguments, variables]).encode()
                socket.send_fds(self._socket, [message], [stdin, stdout, stderr])
                answer, [pidfd], _, _ = socket.recv_fds(self._socket, _MESSAGE_BYTES, 1)
        finally:
            os.close(stdin)
            os.close(stdout)
        return ForkedServer(int(answer), pidfd, our_stdin, our_stdout)

    def _close(self) -> None:
        self._socket.close()
        self._process.wait()


launcher = functools.cache(Launcher)


def serve() -> None:
    """Fork a server for each request; return in the new process, to run the server there."""
    from . import hostile, sample  # noqa: F401 - imported once for all servers
    from .__main__ import main

    # The kernel reaps the servers.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Ctrl-C is for the tests: the launcher ends after them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            message, streams, _, _ = socket.recv_fds(requests, _MESSAGE_BYTES, 3)
            if not message:
                return
            if (pid := os.fork()) == 0:
                break
            pidfd = os.pidfd_open(pid)
            socket.send_fds(requests, [str(pid).encode()], [pidfd])
            for descriptor in (pidfd, *streams):
                os.close(descriptor)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments, variables = json.loads(message)
    os.environ |= variables
    sys.argv[1:] = arguments
    main()
