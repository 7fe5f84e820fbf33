"""Locks between processes.

They are advisory locks of the kernel (flock). The kernel releases a lock when the process ends,
also after a crash. The lock file remains; it contains the PID of the holder, for error messages.
"""

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Final, Self

from jmapfs.errors import BusyError, StorageError

_PID_BYTES: Final = 20
_PAUSE_SECONDS: Final = 0.02


class ProcessLock:
    """A lock on the file `path`, held within `with`; `what` says in messages what it protects.

    One process at a time holds the lock, or any number of processes if all use `shared`. With
    `parents`, missing directories of the file are created, accessible to the owner only.

    Raises on entry:
        BusyError: another process holds it; the message has its PID.
        StorageError: the lock file cannot be created.
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
            raise StorageError(f"cannot create the lock {self._path}: {error.strerror}") from error
        try:
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        # Failing to record our PID must not fail the lock.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        # If several processes share the lock, the file contains the PID of the last one.
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
            raise BusyError(f"{who} is using {self._what}") from None
        except OSError as error:
            raise StorageError(f"cannot lock {self._path}: {error.strerror}") from error


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, _PID_BYTES, 0).decode(errors="replace").strip()


def wait_for_lock(descriptor: int, seconds: float) -> None:
    """Lock a file or directory that other processes lock only briefly, until it is closed.

    Raises OSError if it cannot be locked: TimeoutError if others hold the lock for so long.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another process has locked it") from None
            time.sleep(_PAUSE_SECONDS)
        else:
            return
