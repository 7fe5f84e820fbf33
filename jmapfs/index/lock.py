"""One process keeps an index true to the server at a time: the one that holds this lock.

An advisory lock of the kernel (flock): it goes with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from jmapfs.errors import BusyError, StorageError


class AccountLock:
    """The lock of one account's directory, held within `with`.

    Raises on entry:
        BusyError: another process has it; the message names the process.
        StorageError: the lock file cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot make the lock {self._path}: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            raise BusyError(
                f"process {holder or 'unknown'} is at work on this account ({self._path.parent})"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StorageError(f"cannot lock {self._path}: {error}") from error
        self._descriptor = descriptor
        # Who holds it is for people to read, and no reason not to hold it.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
        self._descriptor = -1
