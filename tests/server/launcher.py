"""Starts servers in milliseconds, by forking a process that has imported them."""

from __future__ import annotations

import functools
import os
import signal
from typing import IO

from tests.forked import ForkedProcess, Forker


class ForkedServer:
    """A process that runs a server; `stdout` is the end of its pipe."""

    def __init__(self, process: ForkedProcess, stdin: int, stdout: int) -> None:
        self._process = process
        self._stdin = stdin
        self.stdout: IO[bytes] = open(stdout, "rb", buffering=0)  # noqa: SIM115

    @property
    def pid(self) -> int:
        return self._process.pid

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; do nothing if the process has ended."""
        self._process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Wait until the process has ended; return False if it has not in that time."""
        return self._process.wait(seconds)

    def close(self) -> None:
        """Close the pipes of a process that has ended."""
        self._process.close()
        os.close(self._stdin)
        self.stdout.close()


@functools.cache
def launcher() -> Forker:
    """Return the process that forks servers, for all tests of this process."""
    return Forker("tests.server.__main__:main", "tests.server.hostile", "tests.server.sample")


def start_server(arguments: list[str], variables: dict[str, str], stderr: int) -> ForkedServer:
    """Run `python -m tests.server` with these arguments and variables."""
    stdin, our_stdin = os.pipe()
    our_stdout, stdout = os.pipe()
    try:
        process = launcher().fork(
            arguments,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            environment={**os.environ, **variables},
        )
    finally:
        os.close(stdin)
        os.close(stdout)
    return ForkedServer(process, our_stdin, our_stdout)
