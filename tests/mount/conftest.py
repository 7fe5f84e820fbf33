"""What tests on real mounts share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounting import Home
from tests.server import ServerProcess, server_process


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user's surroundings, with the credentials of the small server."""
    return Home(tmp_path / "home", "alice@example.org", "secret")


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """The small server with its sample account."""
    with server_process("sample") as server:
        yield server
