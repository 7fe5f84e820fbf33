"""Fixtures for tests of processes that are killed, stopped or starved."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.trapped import TrappedHome, trapped_commands
from tests.mount.changing_account import ChangingAccount
from tests.server import server_process


@pytest.fixture(scope="session", autouse=True)
def _forker() -> None:
    """Start what forks commands before any test, or it would be a leak of the first."""
    trapped_commands()


@pytest.fixture
def home(tmp_path: Path) -> TrappedHome:
    """A home with the credentials of the small server, in which commands can have a trap."""
    return TrappedHome(tmp_path / "home", "alice@example.org", "secret")


@pytest.fixture
def account() -> Iterator[ChangingAccount]:
    """An account that changes, on its own server."""
    with server_process("empty") as server:
        yield ChangingAccount(server)


@pytest.fixture
def chance() -> random.Random:
    """Random numbers that differ in each run; a failed test prints the seed.

    JMAPFS_TEST_SEED repeats a run, as far as its processes run in the same order.
    """
    seed = os.environ.get("JMAPFS_TEST_SEED") or str(random.randrange(10**9))
    print(f"JMAPFS_TEST_SEED={seed}")
    return random.Random(seed)
