"""Reading files to tell whether their content is what it was: each once, whatever names it has.

It is to be the disk that answers, so what the kernel remembers of a file is dropped before it is
read (posix_fadvise(2), POSIX_FADV_DONTNEED: some microseconds a file, and of no effect on pages
that are not written yet). It is dropped afterwards as well: to read a whole account once is no
reason to drive out of memory what others read every day.

A set of half a million things that takes a few megabytes: of each it has the hash only.

Two things of the same hash are one to it. Hashes have 64 bits, and those of text and bytes are
other ones in each process, so nobody can choose names that clash.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from array import array
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import trio

from jmapfs.snapshot.findings import Finding, Kind

_FIRST_SLOTS: Final = 1 << 10
_EMPTY: Final = 0


class HashSet:
    """A set that can be added to: an array of slots, each thing in the first free one from its."""

    def __init__(self) -> None:
        self._count = 0
        self._slots = _slots(_FIRST_SLOTS)

    def add(self, thing: Hashable) -> bool:
        """Add a thing; return whether it was not there before."""
        value = _value(thing)
        slot = self._slot(value)
        if self._slots[slot] == value:
            return False
        self._slots[slot] = value
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            self._grow()
        return True

    def __contains__(self, thing: Hashable) -> bool:
        value = _value(thing)
        return self._slots[self._slot(value)] == value

    def __len__(self) -> int:
        return self._count

    def _slot(self, value: int) -> int:
        slots = self._slots
        last = len(slots) - 1
        slot = value & last
        while slots[slot] != _EMPTY and slots[slot] != value:
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        before, self._slots = self._slots, _slots(2 * len(self._slots))
        for value in before:
            if value != _EMPTY:
                self._slots[self._slot(value)] = value


def _slots(count: int) -> array[int]:
    return array("q", bytes(8 * count))


def _value(thing: Hashable) -> int:
    return hash(thing) or 1


_BUFFER_BYTES: Final = 1 << 20
# A file that is put in the place of another cannot keep us waiting (FIFO), nor lead elsewhere.
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
# What is wrong with one of the names of a file, and tells nothing of the others.
_OF_A_NAME: Final = _GONE | {errno.ELOOP, errno.EINVAL}

_Inode = tuple[int, int]


class Claim(NamedTuple):
    """A file of a snapshot should have a content; if it has not, `findings` are told."""

    path: str
    digest: bytes
    findings: list[Finding]

    def settle(self, content: bytes | Fault) -> None:
        """Compare with what was read."""
        if isinstance(content, Fault):
            self.findings.append(Finding(self.path, content.kind, content.detail))
        elif content != self.digest:
            self.findings.append(Finding(self.path, "altered", "has other content"))


class Fault(NamedTuple):
    """Why a file cannot be read, as a finding says it."""

    kind: Kind
    detail: str


@dataclass(slots=True)
class FileReads:
    """A file that is to be read, by its absolute path; `claims` are what its names say of it."""

    inode: _Inode
    path: str
    has_more_names: bool
    claims: list[Claim] = field(default_factory=list)


class Inodes:
    """What is known of the contents of files, by inode; `bytes_read` is how much was read for it.

    Memory has a hash of each file that is as it should be and has several names. It may be used
    by several threads.
    """

    def __init__(self) -> None:
        self.bytes_read = 0
        self._right = HashSet()
        self._odd: dict[_Inode, bytes | Fault] = {}
        self._readings: dict[_Inode, FileReads] = {}
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Expect nothing more of those who were to read: they may have been given up."""
        with self._lock:
            self._readings.clear()

    def claim(self, status: os.stat_result, path: str, claim: Claim) -> FileReads | None:
        """Settle a claim on the file `path`, or return what is to be read for that."""
        inode = (status.st_dev, status.st_ino)
        with self._lock:
            if (inode, claim.digest) in self._right:
                return None
            odd = self._odd.get(inode)
            if odd is not None:
                claim.settle(odd)
                return None
            reading = self._readings.get(inode)
            if reading is not None:
                reading.claims.append(claim)
                return None
            reading = FileReads(inode, path, status.st_nlink > 1, [claim])
            self._readings[inode] = reading
            return reading

    def read(self, readings: Iterable[FileReads]) -> None:
        """Read files, and settle what is claimed of them; for worker threads."""
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        for reading in readings:
            content: bytes | Fault
            size, is_of_inode = 0, True
            try:
                content, size = read_digest(reading.path, buffer)
            except OSError as error:
                content, is_of_inode = fault_of(error), error.errno not in _OF_A_NAME
            self._settle(reading, content, size, is_of_inode=is_of_inode)

    def _settle(
        self, reading: FileReads, content: bytes | Fault, size: int, *, is_of_inode: bool
    ) -> None:
        with self._lock:
            # Somebody else may be reading it by now, for whom `begin` was called.
            if self._readings.get(reading.inode) is reading:
                del self._readings[reading.inode]
            self.bytes_read += size
            if isinstance(content, Fault) or any(
                claim.digest != content for claim in reading.claims
            ):
                if is_of_inode:
                    self._odd[reading.inode] = content
            elif reading.has_more_names:
                self._right.add((reading.inode, content))
            for claim in reading.claims:
                claim.settle(content)


def opened(path: Path) -> BinaryIO:
    """Open a regular file for reading; raises OSError, for what is something else as well."""
    return os.fdopen(_descriptor(os.fspath(path)), "rb", buffering=_BUFFER_BYTES)


def read_digest(path: str, buffer: memoryview | None = None) -> tuple[bytes, int]:
    """Read a regular file; return its SHA-256, and its size in bytes.

    It is for worker threads of trio, and ends soon when these are cancelled. Raises OSError.
    """
    buffer = memoryview(bytearray(_BUFFER_BYTES)) if buffer is None else buffer
    digest = hashlib.sha256()
    size = 0
    descriptor = _descriptor(path)
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


def fault_of(error: OSError) -> Fault:
    """Return how an error of reading is a finding."""
    if error.errno in _GONE:
        return Fault("missing", "is not there")
    if error.errno == errno.ELOOP:
        return Fault("altered", "is a symbolic link, not a file")
    return Fault("altered", f"cannot be read: {error.strerror}")


def wrong_kind(mode: int) -> str:
    """Return what something is that is no regular file."""
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link"}
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _descriptor(path: str) -> int:
    descriptor = os.open(path, _FLAGS)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {wrong_kind(mode)}", path)
    return descriptor
