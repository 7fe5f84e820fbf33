"""The client of the control socket: one request to a mount, and a freeze that is kept by a lease.

Blocking calls, for any thread. If the process is killed, its mount thaws within `LEASE_SECONDS`.
"""

import socket
import threading
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from jmapfs.control.messages import (
    LEASE_SECONDS,
    RENEWAL_SECONDS,
    FreezeRequest,
    RenewRequest,
    ReplyLine,
    Request,
    StatusRequest,
    ThawRequest,
    short_path,
)
from jmapfs.control.mounts import DEAD, require_mount, socket_path
from jmapfs.errors import UNDECODABLE, JmapfsError, NotMountedError, RelayedError, UsageError

_R = TypeVar("_R")


def ask(mountpoint: Path, request: Request[_R], *, timeout: float | None = None) -> _R:
    """Send a request to the mount at a resolved path, and return its reply.

    `timeout` is in seconds; the default is the timeout of the request class.

    Raises:
        NotMountedError: no jmapfs mount is there, or there is no reply in time.
        UsageError: a path in the request is not valid Unicode.
        RelayedError: the mount answered with an error.
    """
    require_mount(mountpoint)
    try:
        return ask_socket(socket_path(mountpoint), request, timeout=timeout)
    except NotMountedError as error:
        raise NotMountedError(f"{mountpoint}: {error}") from error


def ask_socket(path: Path, request: Request[_R], *, timeout: float | None = None) -> _R:
    """Send a request to the mount whose control socket is given; see `ask`."""
    try:
        line = msgspec.json.encode(request) + b"\n"
    except UnicodeEncodeError:
        raise UsageError("the path is not valid Unicode, so the mount cannot be asked") from None
    try:
        with short_path(path) as short, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(request.timeout if timeout is None else timeout)
            connection.connect(short)
            connection.sendall(line)
            with connection.makefile("rb") as stream:
                received = stream.read()
    except ConnectionRefusedError as error:
        raise NotMountedError(DEAD) from error
    except FileNotFoundError as error:
        raise NotMountedError(
            f"there is no control socket {path}: the mount may have another XDG_RUNTIME_DIR"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise NotMountedError(f"the daemon does not answer: {reason}") from error
    if not received:
        raise NotMountedError("the daemon ended before it answered")
    try:
        reply = msgspec.json.decode(received, type=ReplyLine)
        if reply.error is None:
            return msgspec.json.decode(reply.answer, type=request.reply_type())
    except UNDECODABLE as error:
        raise NotMountedError(f"the daemon sent no usable answer: {error}") from error
    raise RelayedError(reply.error, reply.exit_code)


def waiting_texts(mountpoint: Path) -> set[str]:
    """Return which servers ask the mount to wait, as lines of text. Raises the errors of `ask`."""
    accounts = ask(mountpoint, StatusRequest()).accounts
    return {account.waiting for account in accounts if account.waiting is not None}


class FreezeLease(AbstractContextManager["FreezeLease"]):
    """Keeps a mount frozen: a thread renews the lease until the lease is given back.

    `id` names the lease in other requests. `since` is when the freeze began, in seconds since 1970.
    This is before the lease began if the lease joined a freeze.
    """

    def __init__(self, mountpoint: Path, *, limit: float | None = None, join: bool = False) -> None:
        """Freeze the mount at a resolved path, for `limit` seconds at most.

        Raises NotMountedError if no jmapfs mount is there, or there is no reply in time. Raises
        RelayedError if the mount cannot be frozen, or if it is frozen already and `join` is false.
        """
        self._mountpoint = mountpoint
        lease = ask(mountpoint, FreezeRequest(seconds=LEASE_SECONDS, limit=limit, join=join))
        self.id = lease.id
        self.since = lease.since
        self._released = threading.Event()
        threading.Thread(target=self._keep_renewing, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.release()

    def renew(self) -> bool:
        """Renew the lease; return False if the lease was lost: the tree may have changed.

        Raises NotMountedError if the mount does not answer in time.
        """
        try:
            ask(self._mountpoint, RenewRequest(self.id, LEASE_SECONDS))
        except RelayedError:
            return False
        return True

    def release(self) -> bool:
        """Give the lease back, and wait for the thaw; return False if the lease was lost before."""
        self._released.set()
        try:
            return ask(self._mountpoint, ThawRequest(self.id)).was_frozen
        except NotMountedError:
            return False

    def _keep_renewing(self) -> None:
        # The result is ignored: the owner learns of a lost lease from `renew` or `release`.
        while not self._released.wait(RENEWAL_SECONDS):
            with suppress(JmapfsError):
                self.renew()
