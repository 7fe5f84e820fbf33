"""What can happen to a file: each function does it to one file."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.damage import flip_bits
from tests.disk.original import OTHER_USER

Damage = Callable[[Path], None]


def garbage(path: Path) -> None:
    """Other bytes, as many as before."""
    _write(path, random.Random(7).randbytes(path.stat().st_size))


def empty(path: Path) -> None:
    _write(path, b"")


def truncated(path: Path) -> None:
    _write(path, path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    """One bit has changed."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    if path.stat().st_size:
        flip_bits(path, random.Random(3), count=1)
    path.chmod(mode)


def read_only(path: Path) -> None:
    path.chmod(0o400)


def unreadable(path: Path) -> None:
    path.chmod(0)


def missing(path: Path) -> None:
    path.unlink()


def of_another_user(path: Path) -> None:
    os.chown(path, pwd.getpwnam(OTHER_USER).pw_uid, -1)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as one:
        # The length of such a path is limited.
        directory = Path.cwd()
        os.chdir(path.parent)
        try:
            one.bind(path.name)
        finally:
            os.chdir(directory)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    """A symbolic link to the file, which is somewhere else."""
    moved = path.with_name(f"{path.name}.moved")
    target = path.parents[1] / "elsewhere"
    if not path.is_symlink():
        path.rename(target)
    else:
        path.rename(moved)
        target = moved
    path.symlink_to(target)


def future(path: Path) -> None:
    """A database of a later version."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9999")


CHANGED: Final[dict[str, Damage]] = {
    "garbage": garbage,
    "empty": empty,
    "truncated": truncated,
    "flipped": flipped,
}
"""The content is not right."""

REPLACED: Final[dict[str, Damage]] = {
    "missing": missing,
    "fifo": fifo,
    "socket": unix_socket,
    "directory": directory,
    "link": link,
}
"""There is no file at this name."""

SAME: Final[dict[str, Damage]] = {
    "read-only": read_only,
    "of another user": of_another_user,
}
"""The content is right."""

UNREADABLE: Final[dict[str, Damage]] = {"unreadable": unreadable}
"""Root can read everything, so the commands run as another user."""

OTHER_VERSION: Final[dict[str, Damage]] = {"future": future}
"""Only databases have a version."""

ALL: Final = CHANGED | REPLACED | SAME | UNREADABLE


def _write(path: Path, content: bytes) -> None:
    mode = path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(mode)
