"""Locks between processes: who has one, who may have it as well, and that it goes with them."""

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


def test_it_is_one_processs_and_goes_with_it(tmp_path: Path) -> None:
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


def test_it_is_shared_by_those_who_ask_for_that(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path, shared=True):
        with ProcessLock(path, WHAT, shared=True):
            pass
        # Who has it now does not say so, and it is not whoever was the last to say so.
        with pytest.raises(BusyError, match="another process is at work"), ProcessLock(path, WHAT):
            pass
    with ProcessLock(path, WHAT):
        pass


def test_directories_are_made_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "lock"
    with pytest.raises(StorageError, match="No such file"), ProcessLock(path, WHAT):
        pass
    with ProcessLock(path, WHAT, parents=True):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o600
