"""Going into the background: the daemon is a child, the parent waits for its word.

The fork comes before trio and before anything is opened, so nothing is shared but a pipe. The
mount appears only when the account is listed: until then there is nothing to be seen half-made.

Where the log of a mount's daemon is kept.

Where a daemon's log goes: a file of its own in the background, stderr in the foreground.

The options of `-o`, as mount(8), sshfs and others spell them.

What `jmapfs mount` is asked for, once the command line and the configuration are read.

What a daemon tells the one who started it, until the mount is usable or cannot be made.

In the background it goes through a pipe to the parent, line by line as JSON; in the foreground
straight to the terminal.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

import msgspec
import platformdirs

from jmapfs.account import AccountSource
from jmapfs.control.mounts import file_stem
from jmapfs.errors import JmapfsError, RelayedError, StorageError, UsageError
from jmapfs.tree.tree import Ownership


def log_path(mountpoint: Path) -> Path:
    """Return the log file of the daemon of a mountpoint: `$XDG_STATE_HOME/jmapfs/log/…`."""
    return platformdirs.user_log_path("jmapfs") / f"{file_stem(mountpoint)}.log"


_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_BYTES: Final = 4 * 1024 * 1024
_KEPT: Final = 2


def log_to_stderr(*, verbose: bool) -> None:
    """Log to stderr, from now on."""
    _begin(logging.StreamHandler(), verbose=verbose)


def log_to_file(path: Path, *, verbose: bool) -> None:
    """Log to a file that does not grow for ever, from now on.

    Raises:
        StorageError: the file cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=_BYTES, backupCount=_KEPT)
    except OSError as error:
        raise StorageError(f"cannot write the log {path}: {error.strerror}") from error
    _begin(handler, verbose=verbose)


def _begin(handler: logging.Handler, *, verbose: bool) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger = logging.getLogger("jmapfs")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    logging.captureWarnings(capture=True)
    logging.getLogger("py.warnings").addHandler(handler)


# What mount(8) and fstab pass along, and what is so in any case.
_WITHOUT_EFFECT: Final = frozenset(
    {"ro", "defaults", "auto", "noauto", "user", "nofail", "_netdev", "nosuid", "nodev", "noexec"}
)
_FLAGS: Final = frozenset({"allow_other", "allow_root"})
_NUMBERS: Final = {"uid": 10, "gid": 10, "umask": 8}


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Who the files belong to, who else may look, and what the mount is called."""

    ownership: Ownership = field(default_factory=lambda: Ownership(os.getuid(), os.getgid()))
    flags: frozenset[str] = frozenset()
    fsname: str | None = None


def parse_options(arguments: Iterable[str]) -> MountOptions:
    """Read the values of `-o`: options separated by commas, later ones win.

    Raises:
        UsageError: an option is not known, or its value is not a number.
    """
    options = MountOptions()
    for argument in arguments:
        for option in filter(None, argument.split(",")):
            options = _with(options, option)
    return options


def _with(options: MountOptions, option: str) -> MountOptions:
    name, separator, value = option.partition("=")
    if not separator and name in _WITHOUT_EFFECT:
        return options
    if not separator and name in _FLAGS:
        return replace(options, flags=options.flags | {name})
    if separator and name == "fsname":
        return replace(options, fsname=value)
    if separator and name in _NUMBERS:
        try:
            number = int(value, _NUMBERS[name])
        except ValueError:
            number = -1
        if number < 0:
            raise UsageError(f"-o {option}: the value is not a number")
        return replace(options, ownership=replace(options.ownership, **{name: number}))
    if name in {"rw", "nonempty"}:
        raise UsageError(f"-o {option}: a jmapfs mount is read-only, on an empty directory")
    known = sorted(_FLAGS | {"fsname=NAME"} | {f"{known}=N" for known in _NUMBERS})
    raise UsageError(f"-o {option}: no such option; there are {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class MountRequest:
    """A mount to be made; `cache_limit` in bytes, `poll_interval` in seconds.

    With `all_accounts`, each account that the user can see is a directory at the top.
    """

    source: AccountSource
    mountpoint: Path
    cache_root: Path
    cache_limit: int
    options: MountOptions
    poll_interval: float = 60.0
    all_accounts: bool = False


class StartupReport(Protocol):
    """Takes what a daemon has to say."""

    def progress(self, listed: int, total: int | None) -> None:
        """Say how many emails are listed, of how many where that is known."""
        ...

    def notice(self, text: str) -> None:
        """Say something that the user should know."""
        ...

    def ready(self) -> None:
        """Say that the tree is complete and the mount answers."""
        ...


class StartupMessage(msgspec.Struct, tag=True, frozen=True):
    """A line in the pipe."""


class Progress(StartupMessage, frozen=True):
    """So many emails are listed."""

    listed: int
    total: int | None


class Notice(StartupMessage, frozen=True):
    """A line for the user."""

    text: str


class Ready(StartupMessage, frozen=True):
    """The mount is usable: the parent may end."""


class Failed(StartupMessage, frozen=True):
    """The mount could not be made: a line for the user, and the exit code."""

    text: str
    exit_code: int


AnyStartupMessage = Progress | Notice | Ready | Failed


class PipeStartupReport:
    """Reports to a parent process through a pipe; a parent that is gone is not an error."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def progress(self, listed: int, total: int | None) -> None:
        """Say how many emails are listed, of how many where that is known."""
        self._send(Progress(listed, total))

    def notice(self, text: str) -> None:
        """Say something that the user should know."""
        self._send(Notice(text))

    def ready(self) -> None:
        """Say that the tree is complete and the mount answers."""
        self._send(Ready())
        self.close()

    def failed(self, error: BaseException) -> None:
        """Say that the mount could not be made."""
        if isinstance(error, JmapfsError):
            self._send(Failed(str(error), error.exit_code))
        else:
            self._send(Failed(f"a bug, {type(error).__name__}: see the log", 1))
        self.close()

    def close(self) -> None:
        """Nothing more will be reported."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _send(self, message: AnyStartupMessage) -> None:
        if self._descriptor < 0:
            return
        try:
            # Far below PIPE_BUF, so it is written whole or not at all.
            os.write(self._descriptor, msgspec.json.encode(message) + b"\n")
        except BrokenPipeError:
            self.close()


_GRACE_SECONDS: Final = 30


def run_in_background(daemon: Callable[[PipeStartupReport], int], display: StartupReport) -> None:
    """Run `daemon` in a process of its own; return when it reports that it is ready.

    Until then its progress and notices go to `display`. An interruption ends the daemon too.

    Raises:
        RelayedError: the daemon failed; the message and the exit code are its own.
        KeyboardInterrupt: Ctrl-C; the daemon has been ended.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read_end)
            _leave_terminal()
            code = daemon(PipeStartupReport(write_end))
        finally:
            # Whatever happened: this process must not go on as a second command line.
            os._exit(code)
    os.close(write_end)
    try:
        with open(read_end, "rb") as lines:  # noqa: PTH123 - a descriptor
            for line in lines:
                if _relay(msgspec.json.decode(line, type=AnyStartupMessage), display):
                    return
    except KeyboardInterrupt:
        _end(child)
        raise
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    raise RelayedError(f"the daemon ended with {status} and said nothing: see its log", 1)


def _relay(message: AnyStartupMessage, display: StartupReport) -> bool:
    match message:
        case Progress(listed, total):
            display.progress(listed, total)
        case Notice(text):
            display.notice(text)
        case Failed(text, exit_code):
            raise RelayedError(text, exit_code)
        case Ready():
            display.ready()
            return True
    return False


def _leave_terminal() -> None:
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _end(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
        descriptor = os.pidfd_open(child)
        try:
            ended, _, _ = select.select([descriptor], [], [], _GRACE_SECONDS)
        finally:
            os.close(descriptor)
        if not ended:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
