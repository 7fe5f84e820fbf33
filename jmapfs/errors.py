"""The errors that jmapfs raises, each with its exit code and errno.

    JmapfsError                 exit code   errno
    ├── UsageError              2           EINVAL   the command line asks for something impossible
    ├── ConfigError             3           EINVAL   the configuration or a secret cannot be used
    ├── AuthenticationError     4           EIO      the server does not accept the credentials
    │   └── ForbiddenError      4           EIO      … or accepts them, but does not permit this
    ├── UnreachableError        5           EIO      no response: network, name, TLS, busy server
    │   ├── DeadlineError       5           EIO      … not within the deadline
    │   └── OfflineError        5           EIO      … and no request was made now
    ├── ServerError             6           EIO      the server's response cannot be used
    │   ├── ProtocolError       6           EIO      … it is not JMAP, or not what was requested
    │   ├── MethodError         6           EIO      … it is a JMAP error; `kind` is its type
    │   ├── RequestError        6           EIO      … an HTTP status or problem report
    │   ├── BlobNotFoundError   6           EIO      … the server does not have the blob
    │   └── BlobMismatchError   6           EIO      … the bytes are not those of the blob
    ├── MountpointError         7           EIO      the mountpoint cannot be used, or is not ours
    ├── StorageError            8           EIO      the local index or cache cannot be used
    │   └── DamageError         8           EIO      … its file is damaged
    ├── BusyError               9           EBUSY    another process has the lock, or files open
    ├── NotMountedError         10          ENOTCONN jmapfs is not mounted there
    ├── AlteredFilesError       11          EIO      a snapshot has been altered
    ├── MissingFilesError       12          EIO      … or lacks files
    ├── ExtraFilesError         13          EIO      … or has files that do not belong to it
    ├── TooMuchGoneError        14          EIO      more mail is gone than a snapshot may lose
    ├── IncompleteError         15          EIO      a snapshot would lack, or lacks, some mail
    ├── OutputError             8           EIO      the standard output cannot be written
    │   └── ReaderGoneError     141         EIO      … because nobody reads it any more
    ├── RelayedError            its own     EIO      a daemon of jmapfs reported an error
    └── EntryNotFoundError      1           ENOENT   no such file, directory or inode in the tree

Exit code 0 is success, 1 is a bug (its traceback is in the log) and 130 an interruption by Ctrl-C.
The codes are part of the interface and do not change; docs/commands.md lists them.

A message is one line for the user: what is wrong and, if that is not obvious, what to do. It
never contains a secret. Any other exception is a bug.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import ClassVar, Final

import msgspec

from jmapfs.protection import redact
from jmapfs.text import is_shown

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The errors of msgspec for bytes that are not JSON, or not of the requested type."""

IN_OUTPUT: Final = {"in_output": True}
"""The `extra` of a log record that the commands do not print: their own output says the same."""


# How much is read of a text, in characters for each one that is shown: white space, and a secret
# that is replaced, take more room than what is shown of them.
_READ_FACTOR: Final = 8


class JmapfsError(Exception):
    """An expected error; its text is one line for the user."""

    exit_code: int = 1
    errno: ClassVar[int] = errno.EIO

    def __str__(self) -> str:
        """Return the message as one line, even if it contains text from a server."""
        return " ".join(super().__str__().split())


class UsageError(JmapfsError):
    """The command line asks for something impossible."""

    exit_code = 2
    errno = errno.EINVAL


class ConfigError(JmapfsError):
    """The configuration, an account in it, or the secret of an account cannot be used."""

    exit_code = 3
    errno = errno.EINVAL


class AuthenticationError(JmapfsError):
    """The server does not accept the credentials, or the credentials do not permit enough.

    `remark` says when a mount sends them again; empty if that is not known.
    """

    exit_code = 4
    remark = ""


class ForbiddenError(AuthenticationError):
    """The server does not permit a request. It does not say that the credentials are wrong."""


class UnreachableError(JmapfsError):
    """No response: no network, no such host, refused, TLS failure, or a server that stays busy."""

    exit_code = 5


class DeadlineError(UnreachableError):
    """A response did not arrive within its deadline."""


class OfflineError(UnreachableError):
    """The server is known to be unreachable, so no request was made."""


class ServerError(JmapfsError):
    """The server responded, but the response cannot be used."""

    exit_code = 6


class ProtocolError(ServerError):
    """The response is not JMAP, or not what was requested: not JSON, wrong types, missing parts."""


class MethodError(ServerError):
    """A method-level error (RFC 8620 §3.6.2).

    `kind` is the error type, such as `cannotCalculateChanges`. `method` is the called method.
    """

    def __init__(self, method: str, kind: str, description: str = "") -> None:
        self.method = method
        self.kind = kind
        self.description = description
        # The code compares `kind`, so a secret that looks like a part of it is hidden only here.
        shown = f"{printable(kind, 80)}: {description}".rstrip(": ")
        super().__init__(f"the server answered {method} with {shown}")


class RequestError(ServerError):
    """The server refused a whole request (RFC 8620 §3.6.1), or its HTTP status is an error.

    `status` is the HTTP status; `kind` the problem type (`urn:ietf:params:jmap:error:limit` …),
    or an empty string; `limit` the name of the limit that was exceeded, if the server reports it.
    """

    def __init__(self, message: str, *, status: int, kind: str = "", limit: str = "") -> None:
        self.status = status
        self.kind = kind
        self.limit = limit
        super().__init__(message)


class BlobNotFoundError(ServerError):
    """The server does not have the blob."""


class BlobMismatchError(ServerError):
    """The received content is not confirmed: its length, digest or look is wrong."""


class MountpointError(JmapfsError):
    """The mountpoint is missing, not empty, in the wrong place, or cannot be mounted on."""

    exit_code = 7


class StorageError(JmapfsError):
    """The local index or cache cannot be opened, read or written."""

    exit_code = 8


class DamageError(StorageError):
    """The file of the local index is damaged. The account has to be listed again."""


class BusyError(JmapfsError):
    """Another process holds the lock of an account, or has files open in a mount."""

    exit_code = 9
    errno = errno.EBUSY


class NotMountedError(JmapfsError):
    """jmapfs is not mounted there, or its daemon does not respond."""

    exit_code = 10
    errno = errno.ENOTCONN


class AlteredFilesError(JmapfsError):
    """The mail, the manifest or the checksums of a snapshot have been altered."""

    exit_code = 11


class MissingFilesError(JmapfsError):
    """Files of a snapshot are missing. There may be extra files too, but nothing else is wrong."""

    exit_code = 12


class ExtraFilesError(JmapfsError):
    """A snapshot has files that do not belong to it; its own files are unaltered."""

    exit_code = 13


class TooMuchGoneError(JmapfsError):
    """More mail of the last snapshot is gone than the user has allowed."""

    exit_code = 14


class IncompleteError(JmapfsError):
    """Some mail cannot be downloaded. So there is no snapshot, or one without this mail."""

    exit_code = 15


class OutputError(JmapfsError):
    """The standard output cannot be written."""

    exit_code = 8


class ReaderGoneError(OutputError):
    """The standard output is a pipe, and its reader has ended. This is not shown to the user.

    A shell has the same exit code for a program that SIGPIPE ended.
    """

    exit_code = 141


class RelayedError(JmapfsError):
    """A daemon reported an error. This error has the same message and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class EntryNotFoundError(JmapfsError):
    """The tree has no such name or inode."""

    errno = errno.ENOENT


def printable(text: str, limit: int, *, cut: bool = False) -> str:
    """Return `text` on one line of at most `limit` characters, without secrets.

    Control characters are left out. `cut` tells that the text is only the beginning of another one.
    """
    text = text.lstrip()
    start = text[: _READ_FACTOR * limit]
    shown = redact(start, cut=cut or len(start) < len(text))
    line = " ".join("".join(c if is_shown(c) else " " for c in shown).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


@contextlib.contextmanager
def lone_errors() -> Iterator[None]:
    """If an exception group contains only one error, or only JmapfsErrors, raise the first one.

    Nurseries wrap every error in a group (trio's strict exception groups). If one task fails and
    the others are only cancelled, the caller wants the error of the failed task. If several tasks
    have failed before they were cancelled, such as those whose requests a server refused, one error
    is enough for the user. A group that contains a bug stays a group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = list(_members(group))
        if len(errors) > 1 and not all(isinstance(error, JmapfsError) for error in errors):
            raise
        raise errors[0] from errors[0].__cause__


def _members(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors in a group, and in the groups that it contains."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _members(member)
    else:
        yield error


@contextlib.contextmanager
def storage_errors(place: object) -> Iterator[None]:
    """Convert an OSError to a StorageError that names the file of the OSError, or else `place`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or place}: {error.strerror}") from error
