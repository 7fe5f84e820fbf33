"""Large blobs: each in a file of its own, written under a temporary name and then renamed.

A temporary file is locked while its writer exists. So a process that opens the cache can tell which
temporary files belong to a running process. It deletes files that a killed process has left.
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
from typing import Final

from jmapfs.cache.lru import Checksum, FreeSpace
from jmapfs.errors import StorageError
from jmapfs.private_files import create_file, open_private

_PARTIAL: Final = ".partial-"
_CHUNK_BYTES: Final = 1024 * 1024
_SPACE_CHECK_BYTES: Final = 16 * 1024 * 1024


class LargeBlob(contextlib.AbstractContextManager["LargeBlob"]):
    """An open large blob of `size` bytes; it can still be read after it was evicted.

    Safe to use from several threads, except `close`.
    """

    def __init__(self, descriptor: int, size: int, on_close: Callable[[], None]) -> None:
        self.size = size
        self._descriptor = descriptor
        # If the thread that opened the blob was abandoned, the garbage collector closes the blob.
        self._close = weakref.finalize(self, _close, descriptor, on_close)

    def __exit__(self, *_: object) -> None:
        self.close()

    def pread(self, length: int, offset: int) -> bytes:
        """Return exactly `min(length, size - offset)` bytes; none if `offset` is beyond the end.

        Raises StorageError if the file cannot be read, is too short, or is closed.
        """
        wanted = max(0, min(length, self.size - offset))
        parts: list[bytes] = []
        try:
            while wanted:
                if not self._close.alive:
                    raise StorageError("a cached blob was closed while it was read")
                part = os.pread(self._descriptor, wanted, offset)
                if not part:
                    raise StorageError("a file of the cache has become shorter")
                parts.append(part)
                wanted -= len(part)
                offset += len(part)
        except OSError as error:
            raise StorageError(f"cannot read a file of the cache: {error}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def add_to(self, checksum: Checksum) -> None:
        """Add the whole content, read from the file now; raises the same errors as `pread`."""
        for offset in range(0, self.size, _CHUNK_BYTES):
            checksum.update(self.pread(_CHUNK_BYTES, offset))

    def close(self) -> None:
        """Close it; closing twice does nothing."""
        self._close()


def _close(descriptor: int, on_close: Callable[[], None]) -> None:
    os.close(descriptor)
    on_close()


class LargeWriter(contextlib.AbstractContextManager["LargeWriter"]):
    """Writes a large blob chunk by chunk; at the end of `with` it is deleted unless committed.

    `key` is the key of the blob. `keep` stores the finished file in the cache. It is None if the
    file will not be stored. `on_close` is called when the file is closed. Raises OSError if the
    temporary file cannot be created in `directory`.
    """

    def __init__(
        self,
        directory: Path,
        key: bytes,
        space: FreeSpace,
        keep: Callable[[LargeWriter], bool] | None,
        on_close: Callable[[], None],
    ) -> None:
        self.size = 0
        self._checksum = Checksum(key)
        self._space = space
        self._keep = keep
        self._path: Path | None = directory / f"{_PARTIAL}{secrets.token_hex(8)}"
        self._unchecked = 0
        self._detached = False
        descriptor = create_file(self._path, 0o600, os.O_RDWR)
        self._file = LargeBlob(descriptor, 0, on_close)
        self._descriptor = descriptor
        try:
            # On a file system without locks, another process may delete the file meanwhile.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if keep is None:
                self._unlink()
        except BaseException:
            self.abort()
            raise

    def __exit__(self, *_: object) -> None:
        self.abort()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append a chunk.

        Raises OSError if the chunk cannot be written. A chunk that would use the reserve of free
        space raises ENOSPC. After an error the writer can only be aborted.
        """
        self._unchecked += len(chunk)
        if self._unchecked >= _SPACE_CHECK_BYTES:
            self._unchecked = 0
            # A file that is not stored is deleted soon: it may use the reserve.
            if self._keep is not None and self._space.shortage(0):
                raise OSError(errno.ENOSPC, "the reserve of free space is reached")
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._checksum.update(chunk)
        self.size += len(chunk)

    def checksum(self) -> bytes:
        """Return the checksum of the key and of what was written."""
        return self._checksum.value()

    def commit(self) -> bool:
        """Store the blob durably in the cache; return False if that is impossible."""
        kept = self._keep is not None and self._keep(self)
        self._unlink()
        return kept

    def abort(self) -> None:
        """Delete the file unless it was committed, and close; a second call does nothing."""
        self._unlink()
        if not self._detached:
            self._file.close()

    def detach(self) -> LargeBlob:
        """Return the open blob after `commit`, even if it was not stored; the caller closes it."""
        self._file.size = self.size
        self._detached = True
        return self._file

    def open_beginning(self, size: int) -> LargeBlob:
        """Return an open blob of `size` bytes, of which only what is written can be read.

        It can be read after the writer was aborted. It is closed when nothing refers to it.
        """
        return LargeBlob(os.dup(self._descriptor), size, lambda: None)

    def sync(self) -> None:
        """Wait until the content is on the disk; raises OSError if it cannot be written."""
        os.fsync(self._descriptor)

    def rename(self, target: Path) -> None:
        """Give the file its final name; raises OSError if it cannot be renamed."""
        if self._path is None:
            raise OSError(errno.ENOENT, "the file has been deleted")
        self._path.rename(target)
        self._path = None

    def _unlink(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._path = None


def remove_partial_files(directory: Path) -> set[str]:
    """Delete temporary files that no process writes; return the names of all other files.

    Raises OSError if the directory cannot be read.
    """
    names = set()
    for path in directory.iterdir():
        if not path.name.startswith(_PARTIAL):
            names.add(path.name)
            continue
        with contextlib.suppress(OSError):
            descriptor = open_private(path, create=False)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
    return names
