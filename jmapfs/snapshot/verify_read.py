"""Reads the files of snapshots and compares them with their checksums, each file once.

A file that several snapshots share, or that has several names, is read only the first time.

The content must come from the disk, so the kernel's cached pages of a file are dropped before it is
read (posix_fadvise(2), POSIX_FADV_DONTNEED: some microseconds per file, and no effect on pages that
are not written yet). After the read the pages are dropped again. Otherwise reading a whole account
once would evict the files that other programs read every day.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import trio

from jmapfs.private_files import open_regular
from jmapfs.snapshot.verify_record import Kind

_BUFFER_BYTES: Final = 1 << 20
_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
# Errors about one name of a file. They say nothing about the other names of the file.
_NAME_ERRORS: Final = _MISSING | {errno.ELOOP, errno.EINVAL}

Algorithm = Literal["sha256", "sha1"]

_Inode = tuple[int, int]


class Finding(NamedTuple):
    """A problem in a snapshot. `path` is relative to the snapshot, and may be any name."""

    path: str
    kind: Kind
    detail: str


class ReadError(NamedTuple):
    """The kind and the detail of a finding, for a file that cannot be read."""

    kind: Kind
    detail: str


class Comparison(NamedTuple):
    """A file of a snapshot, and its expected digest. A difference is added to `findings`."""

    path: str
    digest: bytes
    findings: list[Finding]
    detail: str = "has other content"

    def finish(self, content: bytes | ReadError) -> None:
        """Compare the expected digest with the digest, or the error, of the read."""
        if isinstance(content, ReadError):
            self.findings.append(Finding(self.path, content.kind, content.detail))
        elif content != self.digest:
            self.findings.append(Finding(self.path, "altered", self.detail))


@dataclass(slots=True)
class PendingRead:
    """A file that must be read. `path` is absolute.

    `comparisons` gets an item for each name of the file that is found before the read ends.
    """

    inode: _Inode
    path: str
    has_more_names: bool
    comparisons: list[Comparison] = field(default_factory=list)


class InodeCache:
    """The digests of files, by inode. `bytes_read` is the total. It is thread-safe.

    For each correct file with several names, a hash is stored, about 50 bytes. Hashes have 64 bits
    and a random key in each process, so nobody can choose names or contents that collide.
    """

    def __init__(self, algorithm: Algorithm = "sha256") -> None:
        self.bytes_read = 0
        self._algorithm = algorithm
        self._right: set[int] = set()
        self._wrong: dict[_Inode, bytes | ReadError] = {}
        self._pending: dict[_Inode, PendingRead] = {}
        self._lock = threading.Lock()

    def forget_pending(self) -> None:
        """Forget all pending reads. A cancelled verification may have left some."""
        with self._lock:
            self._pending.clear()

    def compare(
        self, status: os.stat_result, path: str, comparison: Comparison
    ) -> PendingRead | None:
        """Finish the comparison for a file, or return the read that it needs first."""
        inode = (status.st_dev, status.st_ino)
        with self._lock:
            if hash((inode, comparison.digest)) in self._right:
                return None
            wrong = self._wrong.get(inode)
            if wrong is not None:
                comparison.finish(wrong)
                return None
            pending = self._pending.get(inode)
            if pending is not None:
                pending.comparisons.append(comparison)
                return None
            pending = PendingRead(inode, path, status.st_nlink > 1, [comparison])
            self._pending[inode] = pending
            return pending

    def read(self, reads: Iterable[PendingRead]) -> None:
        """Read files, and finish their comparisons. Called in worker threads."""
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        for pending in reads:
            content: bytes | ReadError
            size, concerns_inode = 0, True
            try:
                content, size = read_digest(pending.path, buffer, self._algorithm)
            except OSError as error:
                content, concerns_inode = read_error(error), error.errno not in _NAME_ERRORS
            self._finish(pending, content, size, concerns_inode=concerns_inode)

    def _finish(
        self, pending: PendingRead, content: bytes | ReadError, size: int, *, concerns_inode: bool
    ) -> None:
        with self._lock:
            # After `forget_pending` another verification may be reading the same file.
            if self._pending.get(pending.inode) is pending:
                del self._pending[pending.inode]
            self.bytes_read += size
            if isinstance(content, ReadError) or any(
                comparison.digest != content for comparison in pending.comparisons
            ):
                if concerns_inode:
                    self._wrong[pending.inode] = content
            elif pending.has_more_names:
                self._right.add(hash((pending.inode, content)))
            for comparison in pending.comparisons:
                comparison.finish(content)


def read_digest(
    path: str, buffer: memoryview | None = None, algorithm: Algorithm = "sha256"
) -> tuple[bytes, int]:
    """Read a regular file. Return the digest and the size in bytes.

    Called in worker threads of trio. A cancelled thread soon stops reading. Raises OSError.
    """
    buffer = memoryview(bytearray(_BUFFER_BYTES)) if buffer is None else buffer
    digest = hashlib.new(algorithm, usedforsecurity=False)
    size = 0
    descriptor = open_regular(path)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while count := os.readv(descriptor, [buffer]):
            digest.update(buffer[:count])
            size += count
            trio.from_thread.check_cancelled()
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return digest.digest(), size


def read_error(error: OSError) -> ReadError:
    """Convert an OSError from opening or reading a file to the kind and detail of a finding."""
    if error.errno in _MISSING:
        return ReadError("missing", "does not exist")
    if error.errno == errno.ELOOP:
        return ReadError("altered", "is a symbolic link, not a file")
    return ReadError("altered", f"cannot be read: {error.strerror}")
