"""Locks between processes.

They are advisory locks of the kernel (flock). The kernel releases a lock when the process ends,
also after a crash. The lock file remains; it contains the PID of the holder, for error messages.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jmapfs.errors import BusyError, StorageError
from jmapfs.private_files import open_private

_PID_BYTES: Final = 20
_PAUSE_SECONDS: Final = 0.02


@contextlib.contextmanager
def process_lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock on the file `path` in the context; messages call the protected thing `what`.

    Raises on entry:
        BusyError: another process holds it; the message has its PID.
        StorageError: the lock file cannot be created or opened.
    """
    try:
        descriptor = open_private(path)
    except OSError as error:
        raise StorageError(f"cannot use the lock {path}: {error.strerror}") from error
    try:
        _lock(descriptor, path, what)
        # Failing to record our PID must not fail the lock.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, _PID_BYTES, 0).decode(errors="replace").strip()
        who = f"process {holder}" if holder else "another process"
        raise BusyError(f"{who} is using {what}") from None
    except OSError as error:
        raise StorageError(f"cannot lock {path}: {error.strerror}") from error


def wait_for_lock(descriptor: int, seconds: float) -> None:
    """Wait for the lock of an open file or directory; closing the file releases the lock.

    Raises OSError if it cannot be locked, and TimeoutError if others hold the lock too long.
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
