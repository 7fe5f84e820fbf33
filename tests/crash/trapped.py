"""Runs `jmapfs` with a trap, which kills it at a call of a function, or at a moment.

The calls of each module are counted in a first run without a trap, so that later traps are spread
over all modules.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from tests.forked import ForkedProcess, Forker
from tests.mounts import COMMAND_MODULES, COMMAND_SECONDS, Home, Result

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


@functools.cache
def trapped_commands() -> Forker:
    """Return the process that forks commands with traps, for all tests of this process."""
    return Forker("tests.crash.trapped:main", *COMMAND_MODULES)


class TrappedProcess:
    """A command that was started; `output` is the directory of what it prints."""

    def __init__(self, process: ForkedProcess, output: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._output = output
        self._code: int | None = None

    def ended(self, seconds: float = 0.0) -> bool:
        """Wait until the process has ended; return False if it has not in that time."""
        return self._code is not None or self._process.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, also to a process that has just ended."""
        if self._code is None:
            self._process.send_signal(number)

    def result(self, seconds: float = COMMAND_SECONDS) -> Result:
        """Wait for the end; return the exit code, or the negative number of the signal."""
        if self._code is None:
            if not self.ended(seconds):
                waiting = self._waiting_for()
                self.signal(signal.SIGKILL)
                raise TimeoutError(
                    f"a command did not end in {seconds} s: {waiting}{self._read('2')}"
                )
            self._code = self._process.close()
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
        return (self._output / name).read_text(errors="replace")


@dataclass
class TrappedHome(Home):
    """A home in which commands can have a trap."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._outputs = self.directory / "outputs"
        self._outputs.mkdir(exist_ok=True)
        self._number = 0

    def start(
        self, *arguments: str | Path, trap: Trap | None = None, count_calls: bool = False
    ) -> TrappedProcess:
        """Start `jmapfs` with these arguments."""
        self._number += 1
        output = self._outputs / str(self._number)
        output.mkdir()
        traced = [trap.module, trap.call] if trap and trap.module else None
        calls = str(output / "calls") if count_calls else ""
        with (
            Path(os.devnull).open("rb") as stdin,
            (output / "1").open("wb") as stdout,
            (output / "2").open("wb") as stderr,
        ):
            forked = trapped_commands().fork(
                [json.dumps(traced), calls, *map(str, arguments)],
                stdin=stdin.fileno(),
                stdout=stdout.fileno(),
                stderr=stderr.fileno(),
                environment=self.environment,
            )
        process = TrappedProcess(forked, output)
        if trap and not trap.module and not process.ended(trap.seconds):
            process.signal(signal.SIGKILL)
        return process

    def run(self, *arguments: str | Path, seconds: float = COMMAND_SECONDS) -> Result:
        """Run `jmapfs` with these arguments to its end."""
        return self.start(*arguments).result(seconds)


# --- In the process that was forked


def main() -> None:
    """Run `jmapfs` with the trap and the file for the calls that come before its arguments."""
    from jmapfs.__main__ import main as run_command

    trap, calls = json.loads(sys.argv.pop(1)), sys.argv.pop(1)
    counter = _CallCounter(trap) if trap or calls else None
    try:
        run_command()
    finally:
        if counter is not None and calls:
            sys.settrace(None)
            Path(calls).write_text(json.dumps(counter.calls))


class _CallCounter:
    """Counts the calls of functions of jmapfs by module, in all threads, and is the trap."""

    def __init__(self, trap: tuple[str, int] | None) -> None:
        self.calls: Calls = {}
        self._module, self._call = trap or ("", 0)
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
            if name == self._module and count == self._call:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
