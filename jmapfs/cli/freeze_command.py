"""`jmapfs sync`, `freeze` and `thaw`: asking a running mount to do something."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import click

from jmapfs.cli.options import DurationParameter, mountpoint_argument
from jmapfs.control.mounts import require_mount, resolve, socket_directory, socket_name
from jmapfs.control.socket_client import SYNC_SECONDS, ask
from jmapfs.errors import NotMountedError, UsageError

_SECONDS: Final = 300.0  # the kernel may have to forget a hundred thousand names

# What shells answer for a command that is not there, or cannot be run, or was killed by a signal.
_NOT_FOUND: Final = 127
_NOT_RUNNABLE: Final = 126
_KILLED: Final = 128


@click.command("sync")
@mountpoint_argument
def sync_command(mountpoint: Path) -> None:
    """Ask for changes now, and wait until MOUNTPOINT shows them."""
    sync(resolve(mountpoint))


@click.command("freeze", context_settings={"ignore_unknown_options": True})
@mountpoint_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--timeout",
    type=DurationParameter(),
    default="2h",
    show_default=True,
    help="End the freeze after this time at the latest: 30s, 10m, 2h, 1d.",
)
def freeze_command(mountpoint: Path, command: tuple[str, ...], timeout: float) -> None:
    """Hold MOUNTPOINT at its current state, for a backup.

    With a COMMAND (jmapfs freeze MOUNTPOINT -- borg create …), the freeze lasts while the command
    runs, and the exit code is that of the command. Without one, it lasts until `jmapfs thaw`.
    """
    if command:
        sys.exit(run_frozen(resolve(mountpoint), timeout, command))
    freeze(resolve(mountpoint), timeout)


@click.command("thaw")
@mountpoint_argument
def thaw_command(mountpoint: Path) -> None:
    """End a freeze: MOUNTPOINT follows the account again."""
    thaw(resolve(mountpoint))


def sync(mountpoint: Path) -> None:
    """Have a mount ask the server now; return when it shows what the server has."""
    _ask(mountpoint, "sync", seconds=SYNC_SECONDS)


def freeze(mountpoint: Path, seconds: float) -> float:
    """Hold a mount at the state it shows, for `seconds` at most; return when that began."""
    frozen = _ask(mountpoint, "freeze", seconds=_SECONDS, arguments={"seconds": seconds})
    return float(frozen["since"])


def thaw(mountpoint: Path) -> None:
    """End a freeze.

    Raises:
        UsageError: the mount is not frozen.
    """
    if not _ask(mountpoint, "thaw", seconds=_SECONDS)["was_frozen"]:
        raise UsageError(f"{mountpoint}: not frozen (any more)")


def run_frozen(mountpoint: Path, seconds: float, command: Sequence[str]) -> int:
    """Run a command while a mount is held at one state; return the command's exit code.

    A freeze that ended before the command did is told on stderr: what the command saw may then
    be of two states. Its exit code is turned into 1 if it was 0.
    """
    since: float | None = None
    still = False
    with _SignalsLeftToCommand() as signals:
        try:
            since = freeze(mountpoint, seconds)
            signals.frozen()
            code = _run(command, signals.began)
        finally:
            if since is not None:
                still = _thaw_quietly(mountpoint, since)
    if still:
        return code
    print(  # noqa: T201 - a message of the command line
        f"jmapfs: {mountpoint}: the freeze had ended before the command did", file=sys.stderr
    )
    return code or 1


def _run(command: Sequence[str], began: Callable[[subprocess.Popen[bytes]], None]) -> int:
    try:
        with subprocess.Popen(command) as process:
            began(process)
            code = process.wait()
    except FileNotFoundError:
        print(f"jmapfs: {command[0]}: not found", file=sys.stderr)  # noqa: T201
        return _NOT_FOUND
    except OSError as error:
        print(f"jmapfs: {command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return _NOT_RUNNABLE
    return code if code >= 0 else _KILLED - code


class _SignalsLeftToCommand:
    """Leaves it to the command what a signal means, to thaw when that has ended; within `with`.

    The command gets what came before it had begun, and what comes later. Ctrl-C it gets from the
    terminal by itself; before there is a command, that ends the waiting for the freeze.
    """

    def __init__(self) -> None:
        self._is_waiting = True
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # What is ignored (nohup) the command ignores too; a handler of ours it does not inherit.
        self._before = {
            number: signal.signal(number, self._leave)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def frozen(self) -> None:
        """From here on, what was frozen is to be thawed, whatever comes."""
        self._is_waiting = False

    def began(self, process: subprocess.Popen[bytes]) -> None:
        """Take note of the command."""
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def _leave(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            if self._is_waiting:
                raise KeyboardInterrupt
        elif self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)


def _thaw_quietly(mountpoint: Path, since: float) -> bool:
    with contextlib.suppress(NotMountedError):
        answer = _ask(mountpoint, "thaw", seconds=_SECONDS, arguments={"since": since})
        return bool(answer["was_frozen"])
    return False


def _ask(
    mountpoint: Path, command: str, *, seconds: float, arguments: dict[str, Any] | None = None
) -> Any:  # noqa: ANN401 - an answer is whatever JSON can hold
    require_mount(mountpoint)
    return ask(
        socket_directory(), socket_name(mountpoint), command, seconds=seconds, arguments=arguments
    )
