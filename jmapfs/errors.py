"""Every error that jmapfs raises on purpose, with its exit code and its errno.

    JmapfsError                 exit code   errno
    ├── UsageError              2           EINVAL   the command line asks for what cannot be
    ├── ConfigError             3           EINVAL   the configuration, or a secret, is not usable
    ├── AuthenticationError     4           EIO      the server does not accept the credentials
    ├── UnreachableError        5           EIO      no answer: network, name, TLS, or a busy server
    │   └── DeadlineError       5           EIO      an answer did not come within its time
    ├── ServerError             6           EIO      the server's answer cannot be used
    │   ├── ProtocolError       6           EIO      … it is not JMAP, or not what was asked for
    │   ├── MethodError         6           EIO      … it is a JMAP error; `kind` is its type
    │   ├── RequestError        6           EIO      … an HTTP status or problem report
    │   ├── BlobNotFoundError   6           EIO      … the blob is not (or no longer) there
    │   └── BlobMismatchError   6           EIO      … the bytes are not those that were promised
    ├── MountpointError         7           EIO      the mountpoint cannot be used, or is not ours
    ├── StorageError            8           EIO      the local index or cache cannot be used
    ├── BusyError               9           EBUSY    somebody else is using it: lock, mount in use
    ├── NotMountedError         10          ENOTCONN nothing of ours is mounted there
    ├── AlteredFilesError       11          EIO      a snapshot is not what it was when it was made
    ├── MissingFilesError       12          EIO      … files of it are not there any more
    ├── ExtraFilesError         13          EIO      … files are there that are not of it
    ├── TooMuchGoneError        14          EIO      too much mail is gone for a snapshot to go on
    ├── IncompleteError         15          EIO      some mail cannot be had, so no snapshot
    ├── RelayedError            its own     EIO      a daemon of ours failed, and said so
    └── EntryNotFoundError      1           ENOENT   no such file, directory or inode in the tree

Exit code 0 is success, 1 is a bug (its traceback is in the log) and 130 an interruption by Ctrl-C.
The codes are part of the interface: README.md lists them, and they do not change.

A message is one line for the person who reads it: what is wrong and, where it is not plain, what
to do. It never holds a secret. Everything else that escapes is a bug.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import ClassVar, Final

import msgspec

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON, or not of the type that was asked for."""


class JmapfsError(Exception):
    """An error that was foreseen; its text is one line, meant for the user."""

    exit_code: int = 1
    errno: ClassVar[int] = errno.EIO

    def __str__(self) -> str:
        """Return the message on one line, whatever a server put into it."""
        return " ".join(super().__str__().split())


class UsageError(JmapfsError):
    """The command line asks for something that cannot be."""

    exit_code = 2
    errno = errno.EINVAL


class ConfigError(JmapfsError):
    """The configuration, an account in it, or the secret it points to is not usable."""

    exit_code = 3
    errno = errno.EINVAL


class AuthenticationError(JmapfsError):
    """The server does not accept the credentials, or they do not reach far enough."""

    exit_code = 4


class UnreachableError(JmapfsError):
    """No usable answer: no network, no such host, refused, TLS failure, or overload to the end."""

    exit_code = 5


class DeadlineError(UnreachableError):
    """An answer did not come within the time that was given for it."""


class ServerError(JmapfsError):
    """The server answered, and the answer cannot be used."""

    exit_code = 6


class ProtocolError(ServerError):
    """What came is not JMAP, or not what was asked for (not JSON, wrong types, missing parts)."""


class MethodError(ServerError):
    """A method-level error (RFC 8620 §3.6.2).

    `kind` is its type as the server sent it, such as `cannotCalculateChanges`; `method` is the
    method that was called.
    """

    def __init__(self, method: str, kind: str, description: str = "") -> None:
        self.method = method
        self.kind = kind
        self.description = description
        super().__init__(f"the server answered {method} with {kind}: {description}".rstrip(": "))


class RequestError(ServerError):
    """A whole request was refused (RFC 8620 §3.6.1), or its HTTP status is an error.

    `status` is the HTTP status; `kind` the problem type (`urn:ietf:params:jmap:error:limit` …),
    or an empty string; `limit` the name of the limit that was passed, where the server says it.
    """

    def __init__(self, message: str, *, status: int, kind: str = "", limit: str = "") -> None:
        self.status = status
        self.kind = kind
        self.limit = limit
        super().__init__(message)


class BlobNotFoundError(ServerError):
    """The server does not have the blob, or no longer."""


class BlobMismatchError(ServerError):
    """The bytes that came are not the blob that was promised: wrong length or wrong digest."""


class MountpointError(JmapfsError):
    """The mountpoint is missing, not empty, in the wrong place, or cannot be mounted on."""

    exit_code = 7


class StorageError(JmapfsError):
    """The local index or cache cannot be opened, read or written."""

    exit_code = 8


class BusyError(JmapfsError):
    """Somebody else holds it: the lock of an account, or files open in a mount."""

    exit_code = 9
    errno = errno.EBUSY


class NotMountedError(JmapfsError):
    """Nothing of ours is mounted there, or its daemon does not answer."""

    exit_code = 10
    errno = errno.ENOTCONN


class AlteredFilesError(JmapfsError):
    """A snapshot is not what it was when it was made: mail, manifest or checksums are others."""

    exit_code = 11


class MissingFilesError(JmapfsError):
    """Files of a snapshot are not there any more; nothing else is wrong with it, or only extras."""

    exit_code = 12


class ExtraFilesError(JmapfsError):
    """Files are in a snapshot that are not of it; all that are of it are as they were."""

    exit_code = 13


class TooMuchGoneError(JmapfsError):
    """More mail of the last snapshot is gone than the user lets pass without a word."""

    exit_code = 14


class IncompleteError(JmapfsError):
    """Some mail cannot be had. A snapshot is of all mail or is not made."""

    exit_code = 15


class RelayedError(JmapfsError):
    """A daemon of ours could not do it: its own message, with its own exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class EntryNotFoundError(JmapfsError):
    """The tree has no such name or inode."""

    errno = errno.ENOENT


@contextlib.contextmanager
def lone_errors() -> Iterator[None]:
    """Let an error that is alone in an exception group out of it.

    Nurseries wrap every error in a group (trio's strict exception groups). Where one task fails
    and the others are merely cancelled, the caller wants that error.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group or isinstance(error, BaseExceptionGroup):
            raise
        raise error from error.__cause__


@contextlib.contextmanager
def storage_errors(place: object) -> Iterator[None]:
    """Let an OSError become a StorageError: about the file that it names, or about `place`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or place}: {error.strerror}") from error
