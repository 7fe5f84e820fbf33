"""Locks between processes: what one is at work on, another leaves alone.

Advisory locks of the kernel (flock): they go with their processes, however these end. The lock
file stays, and says who holds it, for people to read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final, Self

from jmapfs.errors import BusyError, StorageError

_PID_BYTES: Final = 20


class ProcessLock:
    """A lock on what `what` names in messages, by the file `path`; held within `with`.

    One process has it, or any number of them that ask for it `shared`. With `parents`, the
    directories of the file are made, for their owner alone, as far as they are missing.

    Raises on entry:
        BusyError: another process has it; the message names the process.
        StorageError: the lock file cannot be made.
    """

    def __init__(
        self, path: Path, what: str, *, shared: bool = False, parents: bool = False
    ) -> None:
        self._path = path
        self._what = what
        self._shared = shared
        self._parents = parents
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            if self._parents:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot make the lock {self._path}: {error.strerror}") from error
        try:
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        # Who holds it is no reason not to hold it.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        # Others may go on holding what is shared, and then it is not us.
        with contextlib.suppress(OSError):
            if _holder(self._descriptor) == str(os.getpid()):
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = -1

    def _lock(self, descriptor: int) -> None:
        try:
            kind = fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            who = f"process {holder}" if holder else "another process"
            raise BusyError(f"{who} is at work on {self._what}") from None
        except OSError as error:
            raise StorageError(f"cannot lock {self._path}: {error.strerror}") from error


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, _PID_BYTES, 0).decode(errors="replace").strip()
