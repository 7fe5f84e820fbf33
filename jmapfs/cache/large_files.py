"""Large blobs: each in a file of its own, written under a temporary name and then renamed.

A temporary file is locked for as long as its writer lives, so that the next to open the cache can
tell the leftovers of the dead from the work of another process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from jmapfs.cache.keys import Checksum
from jmapfs.cache.lru import FreeSpace
from jmapfs.errors import StorageError

_PARTIAL: Final = ".partial-"
_PIECE_BYTES: Final = 1024 * 1024
_SPACE_CHECK_BYTES: Final = 16 * 1024 * 1024


class LargeBlob:
    """An open large blob. It stays readable when it is evicted, and is to be closed.

    `size` is its length in bytes. Safe to use from several threads, but for `close`.
    """

    def __init__(self, descriptor: int, size: int, on_close: Callable[[], None]) -> None:
        self.size = size
        self._descriptor = descriptor
        # A thread that opened it and was abandoned leaves it to the garbage collector.
        self._close = weakref.finalize(self, _close, descriptor, on_close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pread(self, length: int, offset: int) -> bytes:
        """Return exactly `min(length, size - offset)` bytes, none of them beyond the end.

        Raises:
            StorageError: the file cannot be read, or has become shorter, or is closed.
        """
        wanted = max(0, min(length, self.size - offset))
        pieces: list[bytes] = []
        try:
            while wanted:
                if not self._close.alive:
                    raise StorageError("a cached blob was closed while it was read")
                piece = os.pread(self._descriptor, wanted, offset)
                if not piece:
                    raise StorageError("a file of the cache has become shorter")
                pieces.append(piece)
                wanted -= len(piece)
                offset += len(piece)
        except OSError as error:
            raise StorageError(f"cannot read a file of the cache: {error}") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def checksum(self) -> bytes:
        """Return the checksum of the whole content, as it is now.

        Raises:
            StorageError: as for `pread`.
        """
        checksum = Checksum()
        for offset in range(0, self.size, _PIECE_BYTES):
            checksum.update(self.pread(_PIECE_BYTES, offset))
        return checksum.digest()

    def close(self) -> None:
        """Close it; once more does nothing."""
        self._close()


def _close(descriptor: int, on_close: Callable[[], None]) -> None:
    os.close(descriptor)
    on_close()


class LargeWriter:
    """Writes a large blob as it comes; in a `with` block, at whose end it is gone if not committed.

    Raises:
        OSError: there cannot be a temporary file in `directory`.
    """

    def __init__(
        self,
        directory: Path,
        space: FreeSpace,
        keep: Callable[[LargeWriter], bool] | None,
        on_close: Callable[[], None],
    ) -> None:
        self.size = 0
        self.checksum = Checksum()
        self._space = space
        self._keep = keep
        self._path: Path | None = directory / f"{_PARTIAL}{secrets.token_hex(8)}"
        self._unchecked = 0
        self._detached = False
        descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        self._file = LargeBlob(descriptor, 0, on_close)
        self._descriptor = descriptor
        try:
            # Some file systems cannot lock; there, leftovers of the living may be taken away.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if keep is None:
                self._unlink()
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append a piece.

        Raises:
            OSError: it cannot be written; ENOSPC also when the reserve of free space is reached.
                The writer can then only be aborted.
        """
        self._unchecked += len(chunk)
        if self._unchecked >= _SPACE_CHECK_BYTES:
            self._unchecked = 0
            # What is not kept is gone in a moment: it may use the last space there is.
            if self._keep is not None and self._space.shortage(0):
                raise OSError(errno.ENOSPC, "the reserve of free space is reached")
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self.checksum.update(chunk)
        self.size += len(chunk)

    def commit(self) -> bool:
        """Keep what was written, durably, and return True; or False where that cannot be."""
        kept = self._keep is not None and self._keep(self)
        self._unlink()
        return kept

    def abort(self) -> None:
        """Throw away what was not committed, and close; once more does nothing."""
        self._unlink()
        if not self._detached:
            self._file.close()

    def detach(self) -> LargeBlob:
        """After `commit`, whatever it said: return what was written, open; the caller closes it."""
        self._file.size = self.size
        self._detached = True
        return self._file

    def sync(self) -> None:
        """Wait until what was written is on the disk.

        Raises:
            OSError: it is not.
        """
        os.fsync(self._descriptor)

    def rename(self, target: Path) -> None:
        """Give the file its lasting name.

        Raises:
            OSError: it has none then.
        """
        if self._path is None:
            raise OSError(errno.ENOENT, "the file has no name any more")
        self._path.rename(target)
        self._path = None

    def _unlink(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._path = None


def remove_leftovers(directory: Path) -> set[str]:
    """Remove the temporary files of the dead, and return the names of all other files.

    Raises:
        OSError: the directory cannot be read.
    """
    names = set()
    for path in directory.iterdir():
        if not path.name.startswith(_PARTIAL):
            names.add(path.name)
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
    return names
