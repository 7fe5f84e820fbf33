"""The mounts of jmapfs, from /proc/self/mountinfo (proc_pid_mountinfo(5)), and their sockets.

Reading the kernel's table does not touch a mount, so a dead or hanging one does not block.
"""

import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jmapfs.errors import NotMountedError, StorageError
from jmapfs.names import key, safe_text

SUBTYPE: Final = "jmapfs"

DEAD: Final = "the daemon of this mount has died: mount again, or run jmapfs umount"
"""The error text for a dead mount."""

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


def resolve(mountpoint: Path) -> Path:
    """Return the absolute path of a mountpoint, without touching what is mounted on it.

    A dead mount answers every call with an error. So only the parent of the path is resolved.
    """
    absolute = Path(os.path.abspath(mountpoint))  # noqa: PTH100 - Path has no lexical equal
    return absolute.parent.resolve() / absolute.name if absolute.name else absolute


def _socket_directory() -> Path:
    """Return the directory of the control sockets, `$XDG_RUNTIME_DIR/jmapfs`; it is private.

    Raises StorageError if the directory cannot be created, or belongs to another user.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    # A system service or a container may have neither of these directories.
    directory = (
        Path(runtime) / "jmapfs"
        if Path(runtime).is_dir()
        else Path(tempfile.gettempdir()) / f"jmapfs-{os.getuid()}"
    )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise StorageError(f"cannot make {directory}: {error.strerror}") from error
    # Without XDG_RUNTIME_DIR, the directory may be in a place where all users can write.
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise StorageError(f"{directory} belongs to another user: set XDG_RUNTIME_DIR")
    if status.st_mode & 0o077:
        directory.chmod(0o700)
    return directory


def socket_path(mountpoint: Path) -> Path:
    """Return the control socket of a mountpoint.

    Raises StorageError if its directory cannot be created, or belongs to another user.
    """
    return _socket_directory() / f"{file_stem(mountpoint)}.sock"


def file_stem(mountpoint: Path) -> str:
    """Return the name, without suffix, of the files that belong to a mountpoint."""
    name = safe_text(mountpoint.name, limit=40) or "root"
    return f"{name}_{key(os.fsencode(mountpoint).hex())}"


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount: `device` is MAJOR:MINOR, `fstype` such as `fuse.jmapfs`."""

    mountpoint: Path
    fstype: str
    source: str
    device: str

    @property
    def ours(self) -> bool:
        """Whether this is a mount of jmapfs."""
        return self.fstype == f"fuse.{SUBTYPE}"


def mounts() -> list[Mount]:
    """Return all mounts, the oldest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        fstype, source, *_ = after.split(b" ")
        found.append(
            Mount(Path(_text(fields[4])), _text(fstype), _text(source), fields[2].decode())
        )
    return found


def mount_at(mountpoint: Path) -> Mount | None:
    """Return the topmost mount at exactly that path, or None."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == mountpoint), None)


def require_mount(mountpoint: Path) -> Mount:
    """Return the jmapfs mount at a resolved path.

    Raises NotMountedError if no jmapfs mount is at this path.
    """
    mount = mount_at(mountpoint)
    if mount is None or not mount.ours:
        around = mount_of(mountpoint)
        hint = "jmapfs status shows all mounts" if around is None else f"name {around.mountpoint}"
        raise NotMountedError(f"{mountpoint}: jmapfs is not mounted there; {hint}")
    return mount


def mount_of(path: Path) -> Mount | None:
    """Return the mount that contains a resolved path, or None if jmapfs did not mount it."""
    around = [mount for mount in mounts() if path.is_relative_to(mount.mountpoint)]
    depth = max((len(mount.mountpoint.parts) for mount in around), default=0)
    # If several mounts have the same mountpoint, the last one is on top.
    top = next((one for one in reversed(around) if len(one.mountpoint.parts) == depth), None)
    return top if top is not None and top.ours else None


def _text(field: bytes) -> str:
    unescaped = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
    return unescaped.decode(errors="surrogateescape")
