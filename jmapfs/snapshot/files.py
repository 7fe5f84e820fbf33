"""File operations that `os` and `shutil` lack: links, syncing and deletion.

Files with the same content share the space on the disk if the file system allows it. They are hard
links of one file. If the file system has no hard links (exFAT, SMB), the files share blocks
(FICLONE, ioctl_ficlone(2)). If the file system cannot share blocks either, the files are copies.
Each copy is verified while it is written.

A snapshot is synced with syncfs(2). It waits until everything that any process wrote to the file
system is on the disk. Since Linux 5.8, syncfs reports writes that failed after the descriptor
passed to it was opened. An fsync of each file would wait once per file.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Literal

from jmapfs.private_files import create_file, open_reading

Links = Literal["hard", "reflink", "copy"]
"""How files with the same content share space: as names of one file, by shared blocks, or not."""

_FICLONE: Final = 0x40049409
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES})
_PIECE_BYTES: Final = 1 << 20
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_libc: Final = ctypes.CDLL(None, use_errno=True)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, with several calls if necessary; raises OSError."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def has_content(path: str, size: int, sha256: str) -> bool:
    """Return whether a file exists and has this content, which is read from the disk.

    After a write error the kernel may hold pages that never reached the disk and count as clean. So
    the cached pages are dropped first. Pages that are still to be written are not dropped, so the
    result proves nothing about them.
    """
    try:
        with open_reading(path) as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


class FileSystem(contextlib.AbstractContextManager["FileSystem"]):
    """The file system of a directory. `sync` reports writes that failed after construction."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = os.open(directory, _OPEN_DIRECTORY)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def sync(self) -> None:
        """Return when everything is on the disk.

        Raises OSError if something could not be written to the disk.
        """
        if _libc.syncfs(self._descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(self._directory))


def sync_directory(directory: Path) -> None:
    """Sync the names in a directory with fsync(2). Raises OSError."""
    descriptor = os.open(directory, _OPEN_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Linker:
    """Gives files more names. `links` is the best method that the file system supports.

    `copied_bytes` counts the bytes of all copies. Raises OSError if nothing can be written in
    `directory`.
    """

    def __init__(self, directory: Path) -> None:
        self.copied_bytes = 0
        self.links = _supported_links(directory)

    def link(self, source: str, target: str, sha256: str) -> bool:
        """Add the name `target` to the file `source`. Return False if `source` has changed.

        Raises OSError if the name cannot be created.
        """
        if self.links == "hard":
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError as error:
                # The number of names of a file is limited. Beyond that, the new name gets a copy.
                if error.errno != errno.EMLINK:
                    raise
            else:
                return True
        with open_reading(source) as original, _create_unbuffered(target) as copy:
            is_right = (self.links == "reflink" and _clone(original.fileno(), copy.fileno())) or (
                self._copy(original.fileno(), copy.fileno(), sha256)
            )
            status = os.fstat(original.fileno())
            os.utime(copy.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        if not is_right:
            Path(target).unlink()
        return is_right

    def _copy(self, original: int, copy: int, sha256: str) -> bool:
        digest = hashlib.sha256()
        while piece := os.read(original, _PIECE_BYTES):
            digest.update(piece)
            self.copied_bytes += len(piece)
            write_all(copy, piece)
        return digest.hexdigest() == sha256


def _supported_links(directory: Path) -> Links:
    """Find out which links work, with a file of one byte: empty files can always be cloned."""
    one, other = directory / "links-one", directory / "links-other"
    try:
        with _create_unbuffered(os.fspath(one)) as file:
            file.write(b"1")
        try:
            os.link(one, other, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            return "hard"
        with open_reading(one) as original, _create_unbuffered(os.fspath(other)) as copy:
            return "reflink" if _clone(original.fileno(), copy.fileno()) else "copy"
    finally:
        for path in (one, other):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _clone(original: int, copy: int) -> bool:
    try:
        fcntl.ioctl(copy, _FICLONE, original)
    except OSError:
        return False
    return True


def _create_unbuffered(path: str) -> BinaryIO:
    return os.fdopen(create_file(path), "wb", buffering=0)


@dataclass(slots=True)
class _Level:
    """A directory on the way down: its inode, its name, and the directories left in it."""

    inode: tuple[int, int]
    name: str = ""
    directories: list[str] = field(default_factory=list)


def delete_tree(path: Path) -> int:
    """Delete a directory and everything in it. Return the size of the files with no other name.

    Each entry is deleted by its name in an open directory. No symbolic link is followed and no
    other file system is entered, so nothing outside of `path` is deleted. Only one directory is
    open at a time: mailboxes may nest deeper than the limit of open files. Raises OSError if an
    entry cannot be deleted, is on another file system, or is being moved.
    """
    flags = _OPEN_DIRECTORY | os.O_NOFOLLOW
    freed = 0
    current = os.open(path, flags)
    try:
        levels = [_Level(_inode(current))]
        freed += _delete_files(current, levels[-1])
        while True:
            if levels[-1].directories:
                name = levels[-1].directories.pop()
                current = _replace(current, os.open(name, flags, dir_fd=current))
                levels.append(_Level(_inode(current), name))
                if levels[-1].inode[0] != levels[0].inode[0]:
                    raise OSError(errno.EXDEV, f"{name} in it is another file system")
                freed += _delete_files(current, levels[-1])
            elif len(levels) > 1:
                current = _replace(current, os.open("..", flags, dir_fd=current))
                name = levels.pop().name
                if _inode(current) != levels[-1].inode:
                    raise OSError(errno.ESTALE, f"{name} in it was moved meanwhile")
                os.rmdir(name, dir_fd=current)
            else:
                break
    finally:
        os.close(current)
    path.rmdir()
    return freed


def _delete_files(directory: int, level: _Level) -> int:
    """Delete the files in a directory, and list its directories. Return the freed bytes."""
    freed = 0
    if not os.fstat(directory).st_mode & stat.S_IWUSR:
        # The user has write-protected this directory. Deleting its entries needs the permission.
        os.fchmod(directory, stat.S_IRWXU)
    files: list[str] = []
    # List all names first: some file systems skip names if others are removed meanwhile.
    with os.scandir(directory) as entries:
        for entry in entries:
            names = level.directories if entry.is_dir(follow_symlinks=False) else files
            names.append(entry.name)
    for name in files:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        os.unlink(name, dir_fd=directory)
        if status.st_nlink == 1:
            freed += status.st_size
    return freed


def _inode(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _replace(descriptor: int, other: int) -> int:
    os.close(descriptor)
    return other
