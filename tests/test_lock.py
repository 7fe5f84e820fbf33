"""Locks between processes: who holds them, and their end with the process."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmapfs.errors import BusyError, StorageError
from jmapfs.locking import process_lock

WHAT = "this thing"


@contextlib.contextmanager
def held_elsewhere(path: Path) -> Iterator[int]:
    """Have another process hold a lock, and kill it at the end; its id."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        with process_lock(path, WHAT):
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
    with (
        held_elsewhere(path) as holder,
        pytest.raises(BusyError, match=f"^process {holder} is using {WHAT}$"),
        process_lock(path, WHAT),
    ):
        pass
    with process_lock(path, WHAT):
        assert path.read_text() == f"{os.getpid()}\n"
    assert path.read_text() == ""


def test_a_holder_that_has_not_recorded_its_pid_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path):
        path.write_text("")
        with pytest.raises(BusyError, match="another process is using"), process_lock(path, WHAT):
            pass


def test_a_lock_makes_its_file_but_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "one" / "lock"
    with pytest.raises(StorageError, match="No such file"), process_lock(path, WHAT):
        pass
    path.parent.mkdir()
    with process_lock(path, WHAT):
        assert path.stat().st_mode & 0o777 == 0o600
