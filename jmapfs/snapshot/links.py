"""Giving a content another name without writing it again, as far as the file system can do that.

Hard links; where there are none (exFAT, SMB) shared blocks (FICLONE, ioctl_ficlone(2)); where
there are none of these either, a copy, whose content is compared with its checksum on the way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Final

from jmapfs.snapshot.files import created, write_all
from jmapfs.snapshot.manifest import Links

_FICLONE: Final = 0x40049409
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES})
_PIECE_BYTES: Final = 1 << 20


class LinkStrategy:
    """Gives files other names in the way that the file system of `directory` has: `links`.

    `copied_bytes` are those that had to be written for it.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, directory: Path) -> None:
        self.copied_bytes = 0
        self.links = _found_out(directory)

    def share(self, source: str, target: str, sha256: str) -> bool:
        """Give the file `source` the name `target` as well; False if its content is another.

        Raises:
            OSError: it cannot be done.
        """
        if self.links == "hard":
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError as error:
                # A file that has all the names it can have: a copy begins anew.
                if error.errno != errno.EMLINK:
                    raise
            else:
                return True
        with Path(source).open("rb") as original, _created(target) as copy:
            right = (self.links == "reflink" and _cloned(original.fileno(), copy.fileno())) or (
                self._copied(original.fileno(), copy.fileno(), sha256)
            )
            status = os.fstat(original.fileno())
            os.utime(copy.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        if not right:
            Path(target).unlink()
        return right

    def _copied(self, original: int, copy: int, sha256: str) -> bool:
        digest = hashlib.sha256()
        while piece := os.read(original, _PIECE_BYTES):
            digest.update(piece)
            self.copied_bytes += len(piece)
            write_all(copy, piece)
        return digest.hexdigest() == sha256


def has_content(path: str, size: int, sha256: str) -> bool:
    """Tell whether a file is there and has that content; it is read, and from the disk.

    After an error of writing, the kernel may have pages that never came to the disk, and call them
    written. So they are dropped first; of those that wait to be written this is no proof.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(descriptor).st_size != size:
                return False
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _found_out(directory: Path) -> Links:
    """Try it, with a file of one byte; a file of none can be cloned everywhere."""
    one, other = directory / "links-one", directory / "links-other"
    one.write_bytes(b"1")
    try:
        try:
            os.link(one, other, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            return "hard"
        with one.open("rb") as original, _created(os.fspath(other)) as copy:
            return "reflink" if _cloned(original.fileno(), copy.fileno()) else "copy"
    finally:
        for path in (one, other):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _cloned(original: int, copy: int) -> bool:
    try:
        fcntl.ioctl(copy, _FICLONE, original)
    except OSError:
        return False
    return True


def _created(path: str) -> BinaryIO:
    return os.fdopen(created(path), "wb", buffering=0)
