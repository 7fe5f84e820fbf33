"""`jmapfs sync`, `freeze`, `thaw` and `umount`: requests to a running mount."""

import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import click

from jmapfs.cli.options import DurationParameter, mountpoint_argument
from jmapfs.cli.output import notice
from jmapfs.control.messages import FreezeRequest, SyncRequest, ThawRequest
from jmapfs.control.mounts import resolve
from jmapfs.control.socket_client import FreezeLease, ask
from jmapfs.daemon.mountpoint import unmount
from jmapfs.errors import UsageError

# The exit codes of shells: the command is not found, cannot be run, or was killed by a signal.
_NOT_FOUND: Final = 127
_NOT_RUNNABLE: Final = 126
_KILLED: Final = 128


@click.command("sync")
@mountpoint_argument
@click.option(
    "--accept-deletions",
    is_flag=True,
    help="Follow the account even if most of its mail is gone (see `jmapfs status`).",
)
def sync_command(mountpoint: Path, *, accept_deletions: bool) -> None:
    """Ask for changes now, and wait until MOUNTPOINT shows them."""
    from jmapfs.cli.progress import waiting_shown  # noqa: PLC0415 - `freeze` needs no progress bar

    mountpoint = resolve(mountpoint)
    with waiting_shown(mountpoint):
        ask(mountpoint, SyncRequest(accept_deletions=accept_deletions, retry_login=True))


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
    # The lease is not renewed. It ends at the timeout or with `jmapfs thaw`.
    ask(resolve(mountpoint), FreezeRequest(seconds=timeout, limit=timeout))


@click.command("thaw")
@mountpoint_argument
def thaw_command(mountpoint: Path) -> None:
    """End a freeze: MOUNTPOINT follows the account again."""
    mountpoint = resolve(mountpoint)
    if not ask(mountpoint, ThawRequest()).was_frozen:
        raise UsageError(f"{mountpoint}: the mount is not frozen")


@click.command("umount")
@mountpoint_argument
def umount_command(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT, and wait until its daemon has ended."""
    unmount(resolve(mountpoint))


def run_frozen(mountpoint: Path, seconds: float, command: Sequence[str]) -> int:
    """Freeze a mount for `seconds` at most, and run a command. Return the command's exit code.

    If the freeze ended before the command, the command may have seen two states. Then a message on
    stderr says so, and an exit code of 0 is changed to 1.
    """
    from jmapfs.cli.config import command_environment  # noqa: PLC0415 - only with a COMMAND

    environment = command_environment()
    lease: FreezeLease | None = None
    was_frozen = False
    with _SignalForwarding() as signals:
        try:
            lease = FreezeLease(mountpoint, limit=seconds)
            signals.frozen()
            code = _run(command, environment, signals.started)
        finally:
            if lease is not None:
                was_frozen = lease.release()
    if was_frozen:
        return code
    notice(f"{mountpoint}: the freeze had ended before the command did")
    return code or 1


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    started: Callable[[subprocess.Popen[bytes]], None],
) -> int:
    try:
        with subprocess.Popen(command, env=environment) as process:
            started(process)
            code = process.wait()
    except FileNotFoundError:
        notice(f"{command[0]}: not found")
        return _NOT_FOUND
    except OSError as error:
        notice(f"{command[0]}: {error.strerror}")
        return _NOT_RUNNABLE
    return code if code >= 0 else _KILLED - code


class _SignalForwarding:
    """Forwards signals to the command within `with`, instead of ending this process.

    So this process can thaw the mount when the command has ended. Signals that come before the
    command has started are forwarded when it has started. Ctrl-C is not forwarded, because the
    terminal sends it to the command too. Before the freeze, Ctrl-C interrupts the freeze request.
    """

    def __init__(self) -> None:
        self._is_waiting = True
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Ignored signals stay ignored (nohup). The command does not inherit these handlers.
        self._before = {
            number: signal.signal(number, self._forward)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def frozen(self) -> None:
        """Ignore Ctrl-C from now on: the command gets it, and this process thaws the mount."""
        self._is_waiting = False

    def started(self, process: subprocess.Popen[bytes]) -> None:
        """Forward signals to the command from now on."""
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def _forward(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            if self._is_waiting:
                raise KeyboardInterrupt
        elif self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)
