"""Fixtures for tests on real mounts. A module overrides `server` to mount another account."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import users
from tests.machine import Machine
from tests.mount.changing_account import ChangingAccount
from tests.mounts import Home, Mounted
from tests.server import ServerProcess, server_process
from tests.users import ALICE, UserHome, user_home

_IMPATIENT = """
from jmapfs.content.service import open_content_service
from jmapfs.jmap import retry
retry._FIRST_PAUSE = 0.02
open_content_service.__wrapped__.__kwdefaults__.update(read_timeout=2, download_timeout=3)
from jmapfs.cli.main import main
main()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user's environment with the credentials of the small server."""
    return Home(tmp_path / "home", "alice@example.org", "secret")


@pytest.fixture
def impatient(home: Home) -> Home:
    """The same, with short timeouts: 2 s for a read, 3 s for a download."""
    home.program = (sys.executable, "-c", _IMPATIENT)
    return home


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """The small server with its sample account."""
    with server_process("sample") as server:
        yield server


@pytest.fixture
def account() -> Iterator[ChangingAccount]:
    """An account that changes, on its own server."""
    with server_process("empty") as server:
        yield ChangingAccount(server)


@pytest.fixture
def mount(home: Home, server: ServerProcess) -> Iterator[Mounted]:
    """The account of `server`, mounted."""
    with home.mounted(server.url) as mount:
        yield mount


@pytest.fixture
def alice() -> Iterator[UserHome]:
    """Another user of this machine."""
    if reason := users.missing():
        pytest.skip(reason)
    with user_home(ALICE) as home:
        yield home


@pytest.fixture
def machine(alice: UserHome, server: ServerProcess) -> Machine:
    """A machine for scripts, with the account `home` on `server`."""
    return Machine(alice, server)
