"""Having everything of a file system on its disk: one call for a hundred thousand files.

syncfs(2) waits for all that was written to the file system, ours and others', and since Linux 5.8
reports what could not be written since its descriptor was opened. An fsync of each file would wait
as often as there are files.

Writing files by descriptor: new ones only, and every byte of what is to be in them.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final, Self


def created(path: Path | str, mode: int = 0o400, *, append: bool = False) -> int:
    """Make a file that is not there yet, and return a descriptor to write to; raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.open(path, flags | (os.O_APPEND if append else 0), mode)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, in several calls where one does not take it; raises OSError."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


_libc: Final = ctypes.CDLL(None, use_errno=True)


class FileSystem:
    """The file system of a directory, watched from the beginning of `with` for failed writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def sync(self) -> None:
        """Return when everything is on the disk.

        Raises:
            OSError: something is not, and may never be.
        """
        if _libc.syncfs(self._descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(self._directory))


def sync_directory(directory: Path) -> None:
    """Have the names in a directory on the disk (fsync(2)); raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
