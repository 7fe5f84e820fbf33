"""Fixtures for tests of processes that are killed, stopped or starved."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.forked import ForkedHome, Forker
from tests.mount.changing_account import ChangingAccount
from tests.server import server_process


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    """The process that has imported jmapfs, for the tests of a file."""
    with Forker() as forker:
        yield forker


@pytest.fixture
def home(forker: Forker, tmp_path: Path) -> ForkedHome:
    """A home with the credentials of the small server, in which commands are forked."""
    return ForkedHome(tmp_path / "home", "alice@example.org", "secret", forker=forker)


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
