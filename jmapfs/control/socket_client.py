"""The client of the control socket: one request to a mount, and a freeze that is kept by a lease.

Blocking calls, for any thread. If the process is killed, its mount thaws within `LEASE_SECONDS`.
"""

import ctypes
import os
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final, TypeVar

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
)
from jmapfs.control.mounts import (
    DEAD,
    DEAD_ERRNOS,
    Mount,
    kernel_answer,
    mount_at,
    mount_of,
    other_namespaces,
    peer,
    require_mount,
)
from jmapfs.errors import UNDECODABLE, JmapfsError, NotMountedError, RelayedError, UsageError

_PAUSES: Final = (0.05, 0.25, 0.5, 0.0)
_KERNEL_SECONDS: Final = 2.0
_ANSWER_SECONDS: Final = 15.0
_PART: Final = 1 << 18
_LONGEST_REPLY: Final = 1 << 28
_CLONE_NEWNET: Final = 0x40000000

_R = TypeVar("_R")


def ask(mountpoint: Path, request: Request[_R], *, timeout: float | None = None) -> _R:
    """Send a request to the mount at a resolved path, and return its reply.

    `timeout` is in seconds; the default is the timeout of the request class.

    Raises:
        NotMountedError: no jmapfs mount of this user is there, or there is no reply in time.
        UsageError: a path in the request is not valid Unicode.
        RelayedError: the mount answered with an error.
    """
    return ask_mount(require_mount(mountpoint), request, timeout=timeout)


def require_answer(path: Path) -> None:
    """Check that the daemon of a mount answers before a path in it is used; see `ask`.

    A daemon that hangs makes every access hang. Nothing is checked if the path is in no mount, or
    in a mount of another user.
    """
    mount = mount_of(Path(os.path.abspath(path)))  # noqa: PTH100 - Path has no lexical equal
    if mount is not None and mount.is_accessible:
        ask_mount(mount, StatusRequest())


def ask_mount(mount: Mount, request: Request[_R], *, timeout: float | None = None) -> _R:
    """Send a request to a mount of jmapfs; see `ask`."""
    try:
        return _ask(mount, request, timeout=timeout)
    except NotMountedError as error:
        raise NotMountedError(f"{mount.mountpoint}: {error}") from error


def _ask(mount: Mount, request: Request[_R], *, timeout: float | None) -> _R:
    try:
        line = msgspec.json.encode(request) + b"\n"
    except UnicodeEncodeError:
        raise UsageError("the path is not valid Unicode, so the mount cannot be asked") from None
    timeout = request.timeout if timeout is None else timeout
    if timeout > _ANSWER_SECONDS:
        # A daemon that hangs or is stopped must not be awaited as long as one that works.
        with suppress(RelayedError):
            _ask(mount, StatusRequest(), timeout=_ANSWER_SECONDS)
    try:
        with connect(mount, timeout) as connection:
            connection.sendall(line)
            received = _receive(connection, timeout)
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


def _receive(connection: socket.socket, timeout: float) -> bytes:
    """Return all bytes until the end. Root must not wait forever for the program of a user."""
    deadline = time.monotonic() + timeout
    received = bytearray()
    while part := connection.recv(_PART):
        received += part
        if len(received) > _LONGEST_REPLY or time.monotonic() > deadline:
            raise NotMountedError("the daemon sends without end")
    return bytes(received)


def waiting_texts(mountpoint: Path) -> set[str]:
    """Return which servers ask the mount to wait, as lines of text. Raises the errors of `ask`."""
    accounts = ask(mountpoint, StatusRequest()).accounts
    return {account.waiting for account in accounts if account.waiting is not None}


def connect(mount: Mount, timeout: float) -> socket.socket:
    """Connect to the daemon of a mount; `timeout` is in seconds, for each call of the socket.

    Raises NotMountedError if no daemon can be reached, and OSError if the connection fails.
    """
    for pause in _PAUSES:
        connection = _connect(mount, mount.daemon_addresses(), timeout)
        if connection is not None:
            return connection
        # A daemon begins to listen just after it has mounted.
        time.sleep(pause)
    for process in other_namespaces("net"):
        with suppress(OSError):
            addresses = set(mount.daemon_addresses(process)).difference(mount.daemon_addresses())
            if not addresses:
                continue
            with suppress(PermissionError):
                connection = _connect_in_network(process, mount, addresses, timeout)
                if connection is not None:
                    return connection
            raise NotMountedError(
                f"its daemon is in another network namespace, that of process {process}, which"
                " only root can enter"
            )
    number = _kernel_error(mount)
    if number == 0:
        raise NotMountedError(
            "its daemon runs, but not where it can be reached: run the command outside of this"
            " container or network namespace"
        )
    if number in DEAD_ERRNOS:
        raise NotMountedError(DEAD)
    raise NotMountedError(
        "the daemon does not answer; if it has ended, `jmapfs umount` clears the mount"
    )


def is_dead(mount: Mount) -> bool | None:
    """Return whether the daemon of a mount has ended, according to the kernel; None: not known."""
    number = _kernel_error(mount)
    return None if number is None else number in DEAD_ERRNOS


def addresses_of_daemon(mount: Mount) -> set[bytes]:
    """Return the addresses where the daemon of a mount may listen, in all network namespaces.

    Those that this process may inspect are meant. Another user can listen at such an address, too.
    """
    found = set(mount.daemon_addresses())
    for process in other_namespaces("net"):
        with suppress(OSError):
            found.update(mount.daemon_addresses(process))
    return found


def _kernel_error(mount: Mount) -> int | None:
    """Return the errno with which a mount of this user answers; 0 if its daemon runs.

    None if that is not known.
    """
    # The kernel answers other users without asking the daemon. The mount can be elsewhere.
    if mount.owner != os.geteuid() or mount_at(mount.mountpoint) != mount:
        return None
    return kernel_answer(mount.mountpoint, _KERNEL_SECONDS)


def _connect(mount: Mount, addresses: Iterable[bytes], timeout: float) -> socket.socket | None:
    for address in addresses:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
            # In another user namespace, the UID in the table of mounts can differ.
            if peer(connection).uid in {mount.owner, os.geteuid()}:
                return connection
        except (ConnectionRefusedError, BlockingIOError):
            # That daemon has ended since, or too many clients wait for it.
            pass
        except BaseException:
            connection.close()
            raise
        connection.close()
    return None


def _connect_in_network(
    process: int, mount: Mount, addresses: Iterable[bytes], timeout: float
) -> socket.socket | None:
    """Connect in the network namespace of a process; raises PermissionError if it is forbidden."""

    def connect_inside() -> socket.socket | None:
        namespace = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # setns(2), which Python has only since 3.12. It changes only the calling thread.
            if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns failed")
        finally:
            os.close(namespace)
        return _connect(mount, addresses, timeout)

    # The thread ends, so nothing else happens in that namespace.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(connect_inside).result()


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
