"""The start of a daemon: the fork, its log, and its reports to the parent process.

The process forks before trio starts and before anything is opened. The child closes what it
inherited. So parent and child share only a pipe. The daemon writes reports to this pipe, as lines
of JSON, until the mount is usable or has failed. In the foreground the reports go straight to the
terminal.
"""

import contextlib
import io
import logging
import logging.handlers
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec
import platformdirs

from jmapfs.control.mounts import file_stem
from jmapfs.errors import JmapfsError, RelayedError, StorageError
from jmapfs.private_files import open_private, private_directory
from jmapfs.text import LogFormatter, escaped

_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOG_BYTES: Final = 4 * 1024 * 1024
_OLD_LOGS: Final = 2

_TERMINATION_SECONDS: Final = 30


def log_path(mountpoint: Path) -> Path:
    """Return the log file of the daemon of a mountpoint: `$XDG_STATE_HOME/jmapfs/log/…`."""
    return platformdirs.user_log_path("jmapfs") / f"{file_stem(mountpoint)}.log"


def log_to_stderr(*, verbose: bool) -> None:
    """Log to stderr from now on."""
    _start_logging(logging.StreamHandler(), verbose=verbose)


def log_to_file(path: Path, *, verbose: bool) -> None:
    """Log to a file of limited size from now on; raises StorageError if the file cannot be made."""
    try:
        private_directory(path.parent, named=platformdirs.user_state_path())
        handler = _LogHandler(path, maxBytes=_LOG_BYTES, backupCount=_OLD_LOGS)
    except OSError as error:
        raise StorageError(
            f"cannot write the log {error.filename or path}: {error.strerror}"
        ) from error
    _start_logging(handler, verbose=verbose)


class _LogHandler(logging.handlers.RotatingFileHandler):
    def _open(self) -> io.TextIOWrapper:
        descriptor = open_private(Path(self.baseFilename), os.O_WRONLY | os.O_APPEND)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def _start_logging(handler: logging.Handler, *, verbose: bool) -> None:
    handler.setFormatter(LogFormatter(_LOG_FORMAT))
    logging.captureWarnings(capture=True)
    for name in ("jmapfs", "py.warnings"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if verbose else logging.INFO)
        logger.propagate = False


class StartupReport(Protocol):
    """Receives the reports of a daemon that is starting."""

    def progress(self, listed: int, total: int | None) -> None:
        """Report how many emails are listed, and the total if it is known."""

    def notice(self, text: str) -> None:
        """Report something that the user should know."""

    def waiting(self, text: str) -> None:
        """Report that the server asks to wait."""

    def ready(self) -> None:
        """Report that the tree is complete and the mount answers."""


class StartupMessage(msgspec.Struct, tag=True, frozen=True):
    """A line in the pipe."""


class Progress(StartupMessage, frozen=True):
    """How many emails are listed, and the total if it is known."""

    listed: int
    total: int | None


class Notice(StartupMessage, frozen=True):
    """A line for the user."""

    text: str


class Waiting(StartupMessage, frozen=True):
    """The server asks to wait: a line for the user."""

    text: str


class Ready(StartupMessage, frozen=True):
    """The mount is usable: the parent may end."""


class Failed(StartupMessage, frozen=True):
    """The mount could not be made: a line for the user, and the exit code."""

    text: str
    exit_code: int


AnyStartupMessage = Progress | Notice | Waiting | Ready | Failed


class PipeStartupReport:
    """Reports to the parent through a pipe. If the parent has ended, that is no error.

    Texts are escaped: JSON cannot contain a name that is not Unicode.
    """

    def __init__(self, descriptor: int, *, joins_group: bool = False) -> None:
        self._descriptor = descriptor
        self._joins_group = joins_group

    def progress(self, listed: int, total: int | None) -> None:
        """Report how many emails are listed, and the total if it is known."""
        self._send(Progress(listed, total))

    def notice(self, text: str) -> None:
        """Report something that the user should know."""
        self._send(Notice(escaped(text)))

    def waiting(self, text: str) -> None:
        """Report that the server asks to wait."""
        self._send(Waiting(escaped(text)))

    def ready(self) -> None:
        """Report that the tree is complete and the mount answers."""
        self._send(Ready())
        self.close()
        if self._joins_group:
            os.setsid()

    def failed(self, error: BaseException) -> None:
        """Report that the mount could not be made."""
        if isinstance(error, JmapfsError):
            self._send(Failed(escaped(str(error)), error.exit_code))
        else:
            self._send(Failed(f"a bug, {type(error).__name__}: see the log", 1))
        self.close()

    def close(self) -> None:
        """Report nothing more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _send(self, message: AnyStartupMessage) -> None:
        if self._descriptor < 0:
            return
        try:
            # The line is far shorter than PIPE_BUF, so it is written whole or not at all.
            os.write(self._descriptor, msgspec.json.encode(message) + b"\n")
        except BrokenPipeError:
            self.close()


def run_in_background(
    daemon: Callable[[PipeStartupReport], int], display: StartupReport, *, joins_group: bool = False
) -> None:
    """Run `daemon` in a process of its own; return when it reports that it is ready.

    Until then its progress and notices go to `display`. Ctrl-C ends the daemon too. With
    `joins_group`, the daemon stays in the process group of its parent until it is ready.

    Raises:
        RelayedError: the daemon failed. The error has the message and exit code of the daemon.
        KeyboardInterrupt: Ctrl-C; the daemon has been ended.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if not joins_group:
                os.setsid()
            _leave_terminal()
            _close_inherited(write_end)
            code = daemon(PipeStartupReport(write_end, joins_group=joins_group))
        finally:
            # The child ends here even after an exception: it must not return to the caller.
            os._exit(code)
    os.close(write_end)
    try:
        with open(read_end, "rb") as lines:  # noqa: PTH123 - a descriptor
            for line in lines:
                if _relay(msgspec.json.decode(line, type=AnyStartupMessage), display):
                    return
    except KeyboardInterrupt:
        _terminate(child)
        raise
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    raise RelayedError(f"the daemon ended with {status} and reported nothing: see its log", 1)


def _relay(message: AnyStartupMessage, display: StartupReport) -> bool:
    """Pass a message on to the user; return whether the daemon is ready."""
    match message:
        case Progress(listed, total):
            display.progress(listed, total)
        case Notice(text):
            display.notice(text)
        case Waiting(text):
            display.waiting(text)
        case Failed(text, exit_code):
            raise RelayedError(text, exit_code)
        case Ready():
            display.ready()
            return True
    return False


def _leave_terminal() -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _close_inherited(keep: int) -> None:
    """Close every descriptor except 0 to 2 and `keep`.

    The caller of `jmapfs mount` may have passed on a lock of flock(1), a pipe, or a file on another
    volume. The daemon would hold it for months. Nothing of this process is open yet.
    """
    # The list also names the descriptor by which it was read.
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, not paths
        descriptor = int(name)
        if descriptor > 2 and descriptor != keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _terminate(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
        descriptor = os.pidfd_open(child)
        try:
            ended, _, _ = select.select([descriptor], [], [], _TERMINATION_SECONDS)
        finally:
            os.close(descriptor)
        if not ended:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
