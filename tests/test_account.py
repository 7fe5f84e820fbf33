"""The directory in which the data of an account is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from jmapfs.account import AccountSource, account_directory
from jmapfs.jmap.credentials import BasicCredentials
from jmapfs.jmap.login import Login
from jmapfs.names import key

LOGIN = Login(BasicCredentials("alice", "secret"))


def directory(root: Path, location: str, account: str | None = None) -> Path:
    return account_directory(root, AccountSource("home", location, LOGIN, account))


@pytest.mark.parametrize(
    "spellings",
    [
        [
            "example.org",
            "EXAMPLE.org",
            "example.org:443",
            "https://example.org",
            "https://example.org/",
            "https://example.org/.well-known/jmap",
        ],
        ["alice@example.org", "Alice@Example.org"],
        ["https://example.org/jmap/session", "https://Example.org:443/jmap/session"],
        ["http://localhost:8080", "http://localhost:8080/"],
    ],
)
def test_all_spellings_of_a_location_have_one_directory(
    tmp_path: Path, spellings: list[str]
) -> None:
    found = {directory(tmp_path, spelling) for spelling in spellings}
    assert len(found) == 1
    assert directory(tmp_path, spellings[0], "B") not in found
    assert directory(tmp_path, "example.net") not in found


def test_a_directory_of_an_earlier_version_is_used(tmp_path: Path) -> None:
    """Earlier versions named it after the spelling."""
    identity = "https://example.org/\0alice\0"
    earlier = tmp_path / f"example.org_{key(identity)}"
    assert directory(tmp_path, "https://example.org/") != earlier
    earlier.mkdir()
    assert directory(tmp_path, "https://example.org/") == earlier
    assert directory(tmp_path, "example.org") != earlier
