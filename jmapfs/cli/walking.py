"""Which mails there are below some paths: found by listing directories, and nothing is read."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from jmapfs.control import mount_of
from jmapfs.errors import NotMountedError, StorageError, UsageError

_EMAIL = ".eml"


def mails_below(paths: Iterable[Path]) -> dict[Path, list[int]]:
    """Return the inodes of the mails that paths are or hold, each once, by the mountpoint.

    Raises:
        NotMountedError: a path is in no mount of ours, or in one whose daemon has died.
        UsageError: a path is not there, is no mail, or cannot be listed.
        StorageError: the mount cannot list a directory.
    """
    found: dict[Path, dict[int, None]] = {}
    for path in paths:
        actual = Path(os.path.realpath(path))
        inodes = found.setdefault(_mountpoint_of(actual), {})
        inodes.update(dict.fromkeys(_mails(actual)))
    return {mountpoint: list(inodes) for mountpoint, inodes in found.items()}


def _mountpoint_of(path: Path) -> Path:
    mount = mount_of(path)
    if mount is None:
        raise NotMountedError(f"{path}: jmapfs is not mounted there")
    return mount.mountpoint


def _mails(path: Path) -> Iterator[int]:
    with _explained(path):
        status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        yield from _mails_in(path)
    elif path.name.endswith(_EMAIL):
        yield status.st_ino
    else:
        raise UsageError(f"{path}: neither a mail nor a directory")


def _mails_in(directory: Path) -> Iterator[int]:
    pending = [str(directory)]
    while pending:
        path = pending.pop()
        with _explained(path), os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.name.endswith(_EMAIL):
                    yield entry.inode()


@contextlib.contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{path}: {error.strerror}"
        if error.errno in {errno.ENOTCONN, errno.ECONNABORTED}:
            raise NotMountedError(message) from error
        if error.errno == errno.EIO:
            raise StorageError(message) from error
        raise UsageError(message) from error
