"""`jmapfs watch`: prints which names change in a mount, or runs a command after each change.

The daemon of the mount is asked for the changes after a position, again and again. It answers when
there are some. While a command runs, nothing is asked: the next answer has all changes since then.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import click
import msgspec
import trio

from jmapfs.cli.config import command_environment
from jmapfs.cli.options import mountpoint_argument
from jmapfs.cli.output import notice, stdout_descriptor, write_now
from jmapfs.cli.signals import run_with_signals
from jmapfs.control.messages import Changes, ChangesRequest
from jmapfs.control.mounts import Mount, mount_of, require_mount, require_readable, resolve
from jmapfs.control.socket_client import ask, require_answer
from jmapfs.errors import NotMountedError, ReaderGoneError, UsageError, storage_errors
from jmapfs.text import escaped, escaped_json
from jmapfs.tree.name_changes import NameChange

_HERE: Final = "."
_RETRY_SECONDS: Final = 0.5


class _Event(msgspec.Struct, frozen=True, tag_field="change"):
    """What a line reports; paths are relative to the watched directory."""

    path: str
    directory: bool


class _Added(_Event, frozen=True, tag="added"):
    """A name has appeared."""


class _Gone(_Event, frozen=True, tag="gone"):
    """A name has disappeared."""


class _Moved(_Event, frozen=True, tag="moved"):
    """A name has become another one."""

    old: str


class _Unknown(_Event, frozen=True, tag="unknown"):
    """Anything below a directory may have changed."""


@click.command("watch", context_settings={"ignore_unknown_options": True})
@mountpoint_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--json", "as_json", is_flag=True, help="Print each line as a JSON object.")
def watch_command(mountpoint: Path, command: tuple[str, ...], *, as_json: bool) -> None:
    """Print the names that change below MOUNTPOINT, or run a COMMAND.

    MOUNTPOINT may also be a directory in a mount. Each line begins with a sign: + for a new name, -
    for a name that is gone, > for a moved mail, R for a renamed or moved mailbox, and ? if anything
    below a directory may have changed. With a COMMAND (jmapfs watch MOUNTPOINT -- notmuch new), the
    command runs at the beginning and after each sync with changes, and gets the lines on its
    standard input.
    """
    require_answer(mountpoint)
    path = resolve(mountpoint)
    mount = mount_of(path) or require_mount(path)
    if command and shutil.which(command[0]) is None:
        raise UsageError(f"{command[0]}: there is no such program")
    watch = _Watch(mount, path)
    as_text = _json if as_json else _line
    if command:
        run_with_signals(partial(_run_after_changes, watch, command, as_text))
    else:
        run_with_signals(partial(_print_changes, watch, as_text))


class _Watch:
    """Asks a mount for the changes at and below a directory."""

    def __init__(self, mount: Mount, directory: Path) -> None:
        self._mount = mount
        self._directory = directory
        # The root is that of a bind mount of a part.
        inside = Path(mount.root, directory.relative_to(mount.mountpoint))
        self._below = "/".join(inside.parts[1:])
        self._position: str | None = None

    async def begin(self) -> None:
        """Report the changes from now on."""
        self._position = (await self._ask()).position
        if self._below:
            require_readable(self._mount)
            if not await trio.to_thread.run_sync(self._directory.is_dir, abandon_on_cancel=True):
                raise UsageError(f"{self._directory}: there is no such directory")
        notice(f"watching {self._directory}")

    async def next(self) -> list[_Event]:
        """Wait for changes, and return them.

        Raises NotMountedError when the mount has ended.
        """
        while True:
            reply = await self._ask()
            self._position = reply.position
            if events := list(_events(reply, self._below)):
                return events

    async def _ask(self) -> Changes:
        return await trio.to_thread.run_sync(
            _ask, self._mount.mountpoint, ChangesRequest(self._position), abandon_on_cancel=True
        )


def _ask(mountpoint: Path, request: ChangesRequest) -> Changes:
    try:
        return ask(mountpoint, request)
    except NotMountedError:
        # If this process was stopped (Ctrl-Z), a reply may be lost. The daemon can repeat it. A
        # daemon that was killed may still accept a connection for a moment.
        time.sleep(_RETRY_SECONDS)
        return ask(mountpoint, request)


async def _print_changes(watch: _Watch, as_text: Callable[[_Event], str]) -> None:
    await watch.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wait_until_unread, stdout_descriptor(), nursery.cancel_scope)
        with suppress(ReaderGoneError):
            while True:
                text = _text(await watch.next(), as_text)
                await trio.to_thread.run_sync(write_now, text, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def _wait_until_unread(output: int, scope: trio.CancelScope) -> None:
    """If the output is a pipe, cancel `scope` when nobody can read it any more."""
    if stat.S_ISFIFO(os.fstat(output).st_mode):
        # The end for writing never becomes readable. But epoll(7) always reports its errors.
        await trio.lowlevel.wait_readable(output)
        scope.cancel()


async def _run_after_changes(
    watch: _Watch, command: Sequence[str], as_text: Callable[[_Event], str]
) -> None:
    environment = command_environment()
    await watch.begin()
    events: list[_Event] = [_Unknown(_HERE, directory=True)]
    while True:
        await _run(command, environment, _text(events, as_text))
        events = await watch.next()


async def _run(command: Sequence[str], environment: Mapping[str, str], text: bytes) -> None:
    with storage_errors("a temporary file"), tempfile.TemporaryFile() as lines:
        lines.write(text)
        lines.seek(0)
        try:
            ended = await trio.run_process(
                command,
                stdin=lines,
                check=False,
                deliver_cancel=_terminate,
                env=environment,
            )
        except OSError as error:
            notice(f"{command[0]}: {error.strerror}")
            return
    if ended.returncode > 0:
        notice(f"{command[0]}: ended with exit code {ended.returncode}")
    elif ended.returncode < 0:
        notice(f"{command[0]}: ended by signal {-ended.returncode}")


async def _terminate(process: trio.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()


def _events(reply: Changes, below: str) -> Iterator[_Event]:
    for path in reply.unknown:
        if (here := _relative(path, below)) is not None:
            yield _Unknown(here, directory=True)
    for change in reply.changes:
        yield from _events_of(change, below)


def _events_of(change: NameChange, below: str) -> Iterator[_Event]:
    old, new = _relative(change.old, below), _relative(change.new, below)
    if _HERE in {old, new}:
        yield _Unknown(_HERE, directory=True)
    elif old is not None and new is not None:
        yield _Moved(new, change.directory, old)
    elif old is not None:
        yield _Gone(old, change.directory)
    elif new is not None:
        yield _Added(new, change.directory)
        if change.directory and change.old is not None:
            # It comes from elsewhere, with its mail.
            yield _Unknown(new, directory=True)


def _relative(path: str | None, below: str) -> str | None:
    """Return the path relative to a directory; `.` if it contains it, None if it is elsewhere."""
    if path is None:
        return None
    if path == below or not path or below.startswith(f"{path}/"):
        return _HERE
    if not below:
        return path
    return path.removeprefix(f"{below}/") if path.startswith(f"{below}/") else None


def _text(events: Sequence[_Event], as_text: Callable[[_Event], str]) -> bytes:
    return "".join(f"{escaped(as_text(event))}\n" for event in events).encode()


def _json(event: _Event) -> str:
    return escaped_json(msgspec.json.encode(event).decode())


def _line(event: _Event) -> str:
    slash = "/" if event.directory else ""
    path = event.path + slash
    match event:
        case _Added():
            return f"+  {path}"
        case _Gone():
            return f"-  {path}"
        case _Moved(old=old):
            return f"{'R' if event.directory else '>'}  {old}{slash} → {path}"
        case _:
            return f"?  {path}"
