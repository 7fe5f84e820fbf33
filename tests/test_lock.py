"""Locks between processes: exclusive and shared ones, and their end with the process."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmapfs.errors import BusyError, StorageError
from jmapfs.locking import ProcessLock

WHAT = "this thing"


@contextlib.contextmanager
def held_elsewhere(path: Path, *, shared: bool = False) -> Iterator[int]:
    """Have another process hold a lock, and kill it at the end; its id."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        with ProcessLock(path, WHAT, shared=shared):
            os.write(go, b".")
            time.sleep(60)
        os._exit(0)
    try:
        os.read(ready, 1)
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(go)


def test_one_process_holds_a_lock_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path) as holder:
        for shared in (False, True):
            with (
                pytest.raises(BusyError, match=f"^process {holder} is using {WHAT}$"),
                ProcessLock(path, WHAT, shared=shared),
            ):
                pass
    with ProcessLock(path, WHAT):
        assert path.read_text() == f"{os.getpid()}\n"
    assert path.read_text() == ""


def test_shared_locks_exclude_only_an_exclusive_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path, shared=True):
        with ProcessLock(path, WHAT, shared=True):
            pass
        # The last process that recorded its PID has released the lock; the holder is unknown.
        with pytest.raises(BusyError, match="another process is using"), ProcessLock(path, WHAT):
            pass
    with ProcessLock(path, WHAT):
        pass


def test_missing_directories_are_created_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "lock"
    with pytest.raises(StorageError, match="No such file"), ProcessLock(path, WHAT):
        pass
    with ProcessLock(path, WHAT, parents=True):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o600
