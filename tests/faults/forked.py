"""Runs the commands of jmapfs in forks of a process that has imported them.

A command then takes milliseconds of CPU, not half a second, which makes a thousand cells possible.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.mounts import COMMAND_SECONDS, Home, Result

_ROOT = Path(__file__).parents[2]
_MESSAGE_BYTES = 64 * 1024


@dataclass
class ForkedHome(Home):
    """A home whose commands are forked."""

    def run(self, *arguments: str | Path, seconds: float = COMMAND_SECONDS) -> Result:
        command = [str(argument) for argument in arguments]
        self.directory.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory, prefix="output-") as name:
            output = Path(name)
            pid, pidfd = forker().fork(command, self.environment, output)
            try:
                if not select.select([pidfd], [], [], seconds)[0]:
                    # The command and its waiter; a daemon has its own process group.
                    os.killpg(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(command, seconds)
            finally:
                os.close(pidfd)
            stdout, stderr, code = (
                (output / name).read_text() for name in ("stdout", "stderr", "exit_code")
            )
            return Result(int(code), stdout, stderr)


class Forker:
    """The process that forks commands. It ends with this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from tests.faults.forked import serve; serve()"],
                cwd=_ROOT,
                stdin=theirs.fileno(),
            )
        atexit.register(self.close)

    def fork(
        self, command: Sequence[str], variables: Mapping[str, str], output: Path
    ) -> tuple[int, int]:
        """Run a command; return the PID and the pidfd of the process that waits for its end."""
        message = json.dumps([command, dict(variables), str(output)]).encode()
        with self._lock:
            self._socket.send(message)
            answer, [pidfd], _, _ = socket.recv_fds(self._socket, _MESSAGE_BYTES, 1)
        return int(answer), pidfd

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.wait()


forker = functools.cache(Forker)


def serve() -> None:
    """Fork a command for each request."""
    import jmapfs

    for module in pkgutil.walk_packages(jmapfs.__path__, "jmapfs."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    with socket.socket(fileno=os.dup(0)) as requests:
        while message := requests.recv(_MESSAGE_BYTES):
            _reap()
            if (pid := os.fork()) == 0:
                requests.close()
                command, variables, output = json.loads(message)
                _wait_for(command, variables, Path(output))
            pidfd = os.pidfd_open(pid)
            socket.send_fds(requests, [str(pid).encode()], [pidfd])
            os.close(pidfd)


def _reap() -> None:
    """Reap the processes that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _wait_for(command: Sequence[str], variables: Mapping[str, str], output: Path) -> NoReturn:
    """Fork the command, and write its exit code to a file at its end."""
    os.setsid()
    for number, path in enumerate((Path(os.devnull), output / "stdout", output / "stderr")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        descriptor = os.open(path, flags, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if (pid := os.fork()) == 0:
        os.environ.clear()
        os.environ.update(variables)
        sys.argv[:] = ["jmapfs", *command]
        from jmapfs.cli.main import main

        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException:  # noqa: BLE001 - as Python does at its end
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    (output / "exit_code").write_text(str(os.waitstatus_to_exitcode(status)))
    os._exit(0)
