"""Snapshots of a mount whose server was reset: no wrong byte gets in."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmapfs.errors import TooMuchGoneError
from tests.mails import received_at, text_mail
from tests.mounts import Home
from tests.server import ServerProcess, server_process
from tests.snapshot.commands import TakenSnapshot, dates, require_whole, tree_of

pytestmark = pytest.mark.mount


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with server_process("empty") as server:
        reset(server, 0)
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", "alice@example.org", "secret")


def reset(server: ServerProcess, first: int) -> None:
    """Give the account mails with the ids M1, M2 and so on, and with always the same sizes."""
    server.control.reset(
        [text_mail(first + number, padding=50 - len(str(first + number))) for number in range(12)],
        received_at=[received_at(first + number) for number in range(12)],
    )


def require_right(server: ServerProcess, snapshot: Path) -> None:
    """Check that a snapshot has all emails of the server, byte for byte."""
    require_whole(snapshot)
    expected = Counter(email.sha256 for email in server.control.dump().emails)
    assert Counter(digest for digest, _, _ in tree_of(snapshot).values()) == expected


@pytest.mark.parametrize("cache", ["kept", "deleted"])
def test_a_reset_between_two_snapshots(
    server: ServerProcess, home: Home, tmp_path: Path, cache: str
) -> None:
    """The ids and the sizes are the same again."""
    dest = tmp_path / "dest"
    with home.mounted(server.url) as mount:
        assert home.run("snapshot", mount.path, dest).exit_code == 0
        reset(server, 50)
        if cache == "kept":
            failed = home.run("snapshot", mount.path, dest)
            assert failed.exit_code == TooMuchGoneError.exit_code, failed.stderr
            assert "--accept-deletions" in failed.stderr
            assert len(dates(dest)) == 1
            # The account has the index of the mount.
            failed = home.run("snapshot", server.url, dest)
            assert failed.exit_code == TooMuchGoneError.exit_code, failed.stderr
            assert home.run("sync", "--accept-deletions", mount.path).exit_code == 0
    if cache == "deleted":
        shutil.rmtree(home.cache)
    with home.mounted(server.url) as mount:
        failed = home.run("snapshot", mount.path, dest)
        assert failed.exit_code == TooMuchGoneError.exit_code
        result = home.run("snapshot", "--json", "--max-gone", "100", mount.path, dest)
        assert result.exit_code == 0, result.stderr
        require_right(server, TakenSnapshot(json.loads(result.stdout)).path)
        again = home.run("snapshot", "--json", mount.path, dest)
        assert json.loads(again.stdout)["fetched"] == 0
