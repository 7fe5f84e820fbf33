"""The mounts of jmapfs, from /proc/self/mountinfo (proc_pid_mountinfo(5)), and their daemons.

Reading the kernel's table does not touch a mount, so a dead or hanging one does not block.

The daemon of a mount listens on an abstract socket (unix(7)). The name of the socket contains the
device number of the mount, and something random so that no other user can take the name first.
The kernel lists the names in /proc/net/unix. So a daemon is found from its mount alone: without a
file that could be removed or be hidden, and without a variable of the environment. The kernel gives
up the name when the daemon ends. Anybody can connect to such a socket. Both sides therefore check
the user at the other end. Each network namespace (network_namespaces(7)) has its own names.
"""

import contextlib
import errno
import os
import pwd
import re
import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from jmapfs.errors import NotMountedError, UsageError
from jmapfs.names import key, safe_text

SUBTYPE: Final = "jmapfs"

DEAD: Final = "the daemon of this mount has died: mount again, or run jmapfs umount"
"""The error text for a dead mount."""

DEAD_ERRNOS: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
"""The errors with which the kernel answers for a dead mount."""

_NAME: Final = "jmapfs"
_ABSTRACT: Final = b"\0"
_LISTENING: Final = 1 << 16  # SO_ACCEPTCON
_LINKS: Final = 40  # as many as the kernel follows

# Num: RefCount Protocol Flags Type St Inode Path. The names of other sockets can contain anything.
_SOCKET: Final = re.compile(
    rb"^\w+: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) [0-9A-F]{4} [0-9A-F]{2} +\d+"
    rb" @(jmapfs/\d+:\d+/[0-9a-f]{32})$",
    re.MULTILINE,
)
_OWNER: Final = re.compile(rb"\buser_id=(\d+)")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_UID: Final = re.compile(rb"^Uid:\t(\d+)", re.MULTILINE)


def resolve(mountpoint: Path) -> Path:
    """Return the absolute path of a mountpoint, without touching what is mounted on it.

    A dead mount answers every call with an error, so the last name of the path is only read as a
    link. The kernel answers that without asking the mount.
    """
    path = Path(os.path.abspath(mountpoint))  # noqa: PTH100 - Path has no lexical equal
    for _ in range(_LINKS):
        if not path.name:
            break
        path = path.parent.resolve() / path.name
        try:
            target = path.readlink()
        except OSError:
            break
        path = Path(os.path.abspath(path.parent / target))  # noqa: PTH100
    return path


def file_stem(mountpoint: Path) -> str:
    """Return the name, without suffix, of the files that belong to a mountpoint."""
    name = safe_text(mountpoint.name, limit=40) or "root"
    return f"{name}_{key(os.fsencode(mountpoint).hex())}"


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount: `device` is MAJOR:MINOR, `fstype` such as `fuse.jmapfs`.

    `owner` is the UID of the user who mounted it (FUSE only). `root` is the directory in the file
    system that is mounted: not `/` if it is a bind mount of a part.
    """

    mountpoint: Path
    fstype: str
    source: str
    device: str
    owner: int | None = None
    root: str = "/"

    @property
    def ours(self) -> bool:
        """Whether this is a mount of jmapfs."""
        return self.fstype == f"fuse.{SUBTYPE}"

    @property
    def owner_name(self) -> str:
        """The name of the user who mounted it, or the UID of a user without a name."""
        return user_name(-1 if self.owner is None else self.owner)

    @property
    def is_accessible(self) -> bool:
        """Whether this process may talk to the daemon: only the owner and root may."""
        return os.geteuid() in {0, self.owner}

    def daemon_addresses(self, process: int | str = "self") -> Iterator[bytes]:
        """Yield the addresses at which its daemon may listen, in a process's network namespace.

        Another user can listen at such an address as well.
        """
        prefix = f"{_NAME}/{self.device}/".encode()
        sockets = Path("/proc", str(process), "net", "unix").read_bytes()
        for flags, name in _SOCKET.findall(sockets):
            if name.startswith(prefix) and int(flags, 16) & _LISTENING:
                yield _ABSTRACT + name


def user_name(uid: int) -> str:
    """Return the name of a user, or the UID of a user without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def new_address(device: str) -> bytes:
    """Return an address at which the daemon of a mount can listen; see `Mount.device`."""
    return _ABSTRACT + f"{_NAME}/{device}/{secrets.token_hex(16)}".encode()


def _namespace(kind: str, process: int | str = "self") -> str:
    return os.readlink(f"/proc/{process}/ns/{kind}")  # noqa: PTH115 - a name, not a path


def other_namespaces(kind: str) -> Iterator[int]:
    """Yield, for each other namespace of a kind, a process in it that this process may inspect.

    `kind` is `net` or `mnt`; see namespaces(7). Other user namespaces are left out. The namespaces
    of a daemon that protects its memory (`jmapfs.protection`) are not known. They may be the same,
    so these daemons come last.
    """
    hidden = []
    users = _namespace("user")
    seen = {_namespace(kind)}
    for process in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 - PIDs
        with contextlib.suppress(OSError):
            try:
                namespace = _namespace(kind, process)
            except PermissionError:
                if _user_of(process) == os.geteuid():
                    hidden.append(int(process))
                continue
            if namespace not in seen and _namespace("user", process) == users:
                seen.add(namespace)
                yield int(process)
    yield from hidden


def _user_of(process: str) -> int | None:
    """Return the real UID of a process, whose directory in /proc may belong to root."""
    found = _UID.search(Path("/proc", process, "status").read_bytes())
    return None if found is None else int(found[1])


class Peer(NamedTuple):
    """The process at the other end of a connection, according to the kernel."""

    pid: int
    uid: int


class _Connection(Protocol):
    def getsockopt(self, level: int, name: int, size: int, /) -> bytes: ...


def peer(connection: _Connection) -> Peer:
    """Return who has called connect(2), or on the side of the client, listen(2)."""
    size = struct.calcsize("iII")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = struct.unpack("iII", credentials)
    return Peer(pid, uid)


def mounts(process: int | str = "self") -> list[Mount]:
    """Return all mounts in the mount namespace of a process, the oldest first."""
    found = []
    table = Path("/proc", str(process), "mountinfo").read_bytes()
    # The kernel escapes a line feed in a name, but not the other ends of lines.
    for line in table.rstrip(b"\n").split(b"\n"):
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        fstype, source, options = after.split(b" ", 2)
        owner = _OWNER.search(options)
        found.append(
            Mount(
                Path(_text(fields[4])),
                _text(fstype),
                _text(source),
                fields[2].decode(),
                int(owner[1]) if owner else None,
                _text(fields[3]),
            )
        )
    return found


def own_mounts() -> list[Mount]:
    """Return the jmapfs mounts that this process may command, each once; root may command all.

    Those in other mount namespaces are included, such as that of a service.
    """
    found: dict[str, Mount] = {}
    processes: list[int | str] = ["self", *other_namespaces("mnt")]
    for process in processes:
        with contextlib.suppress(OSError):
            for mount in mounts(process):
                if mount.ours and mount.is_accessible:
                    # The first is the mount itself. The others are bind mounts of it.
                    found.setdefault(mount.device, mount)
    return list(found.values())


def kernel_answer(path: Path, seconds: float) -> int | None:
    """Return the errno with which the file system at a path answers; 0 if it works.

    None if it does not answer in time: the daemon of a FUSE mount, or a server, may hang.
    """
    answers: list[int] = []

    def ask() -> None:
        try:
            # The kernel would answer stat from its cache.
            os.statvfs(path)
            answers.append(0)
        except OSError as error:
            answers.append(error.errno or 0)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def mount_at(mountpoint: Path) -> Mount | None:
    """Return the topmost mount at exactly that path, or None."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == mountpoint), None)


def require_mount(mountpoint: Path) -> Mount:
    """Return the jmapfs mount at a resolved path.

    Raises NotMountedError if no jmapfs mount is at this path, or if it is that of another user.
    """
    mount = mount_at(mountpoint)
    if mount is None or not mount.ours:
        for process in other_namespaces("mnt"):
            with contextlib.suppress(OSError):
                if any(one.ours and one.mountpoint == mountpoint for one in mounts(process)):
                    raise NotMountedError(
                        f"{mountpoint}: jmapfs is mounted there only in another mount namespace:"
                        f" `nsenter --mount --target {process}` enters it"
                    )
        around = mount_of(mountpoint)
        hint = "jmapfs status shows all mounts" if around is None else f"name {around.mountpoint}"
        raise NotMountedError(f"{mountpoint}: jmapfs is not mounted there; {hint}")
    if not mount.is_accessible:
        raise NotMountedError(
            f"{mountpoint}: it is mounted by {mount.owner_name}: only this user and root can use it"
        )
    return mount


def require_readable(mount: Mount) -> None:
    """Raise UsageError if this process cannot read the files of a mount of another user.

    The kernel lets only the owner into a mount, not even root, unless its options allow more.
    """
    if mount.owner == os.geteuid() or os.access(mount.mountpoint, os.R_OK | os.X_OK):
        return
    raise UsageError(
        f"{mount.mountpoint}: only {mount.owner_name} can read this mount: run the command as"
        f" {mount.owner_name}, or mount with -o allow_root"
    )


def mount_of(path: Path) -> Mount | None:
    """Return the mount that contains a resolved path, or None if jmapfs did not mount it."""
    mount = _mount_around(path)
    return mount if mount is not None and mount.ours else None


def is_automount(path: Path) -> bool:
    """Return whether an access to a resolved path makes systemd or autofs mount something there."""
    mount = _mount_around(path)
    return mount is not None and mount.fstype == "autofs"


def _mount_around(path: Path) -> Mount | None:
    around = [mount for mount in mounts() if path.is_relative_to(mount.mountpoint)]
    depth = max((len(mount.mountpoint.parts) for mount in around), default=0)
    # If several mounts have the same mountpoint, the last one is on top.
    return next((one for one in reversed(around) if len(one.mountpoint.parts) == depth), None)


def _text(field: bytes) -> str:
    unescaped = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
    return unescaped.decode(errors="surrogateescape")
