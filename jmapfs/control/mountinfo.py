"""Which of our mounts there are, from /proc/self/mountinfo (proc_pid_mountinfo(5)).

Asking the kernel's table never touches a mount, so a dead or hanging one cannot hold us up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jmapfs.errors import NotMountedError

SUBTYPE: Final = "jmapfs"

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount: `device` is MAJOR:MINOR, `fstype` such as `fuse.jmapfs`."""

    mountpoint: Path
    fstype: str
    source: str
    device: str

    @property
    def ours(self) -> bool:
        """Whether it is a mount of jmapfs."""
        return self.fstype == f"fuse.{SUBTYPE}"


def mounts() -> list[Mount]:
    """Return all mounts, in the order in which they were made."""
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
    """Return what is mounted at exactly that path, the topmost of several; or None."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == mountpoint), None)


def require_mount(mountpoint: Path) -> Mount:
    """Return the mount of ours at a resolved path.

    Raises:
        NotMountedError: nothing of ours is mounted there.
    """
    mount = mount_at(mountpoint)
    if mount is None or not mount.ours:
        raise NotMountedError(f"{mountpoint}: jmapfs is not mounted there")
    return mount


def mount_of(path: Path) -> Mount | None:
    """Return the mount that a resolved path is in, if it is one of jmapfs; or None."""
    around = [mount for mount in mounts() if path.is_relative_to(mount.mountpoint)]
    depth = max((len(mount.mountpoint.parts) for mount in around), default=0)
    # Of several at one place the last one is on top.
    top = next((one for one in reversed(around) if len(one.mountpoint.parts) == depth), None)
    return top if top is not None and top.ours else None


def _text(field: bytes) -> str:
    unescaped = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
    return unescaped.decode(errors="surrogateescape")
