"""What `stat` says of a file or a directory.

Modes, owners and everything of an email are constant for its life (SEMANTICS.md): backup tools
take any change for a change of content.
"""

from __future__ import annotations

import enum
import stat
from dataclasses import dataclass
from typing import Final, NamedTuple

BLOCK: Final = 512
"""The unit of `st_blocks`, in bytes (stat(2))."""

_FILE_MODE: Final = 0o444
_DIRECTORY_MODE: Final = 0o755

_NANOSECONDS: Final = 1_000_000_000


class Kind(enum.Enum):
    """What an inode is."""

    DIRECTORY = stat.S_IFDIR
    FILE = stat.S_IFREG


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whom the files belong to, and the permission bits that are withheld."""

    uid: int
    gid: int
    umask: int = 0o077

    def mode(self, kind: Kind) -> int:
        """Return `st_mode`: read-only files in directories whose copies can be deleted again."""
        base = _DIRECTORY_MODE if kind is Kind.DIRECTORY else _FILE_MODE
        return kind.value | (base & ~self.umask)


class Attributes(NamedTuple):
    """Attributes of one inode: `size` in bytes, `time_ns` (mtime, ctime, atime) since 1970.

    There is one for each entry of each listing: a frozen dataclass takes twice as long to make.
    """

    inode: int
    kind: Kind
    size: int
    time_ns: int
    links: int

    @property
    def blocks(self) -> int:
        """How many blocks of 512 bytes the content takes."""
        return (self.size + BLOCK - 1) // BLOCK


def file_attributes(inode: int, *, size: int, received_at: int, links: int) -> Attributes:
    """Return the attributes of an email: its times are the time of receipt."""
    return Attributes(inode, Kind.FILE, size, time_ns(received_at), links)


def directory_attributes(
    inode: int, *, newest: int, digest: int, subdirectories: int
) -> Attributes:
    """Return the attributes of a directory.

    Its time has to move when its members change and at no other time, on every machine alike, so
    it is made of nothing but them: the seconds of its newest email, and a digest of all names as
    nanoseconds.
    """
    when = time_ns(newest) + digest % _NANOSECONDS
    return Attributes(inode, Kind.DIRECTORY, 0, when, 2 + subdirectories)


def time_ns(seconds: int) -> int:
    """Return a time of receipt in nanoseconds; before 1970 it is 1970.

    The FUSE protocol has unsigned seconds, and many a file system below a backup too.
    """
    return max(seconds, 0) * _NANOSECONDS
