"""Every command on a repository with a damaged file.

It may refuse, and say why; what it may not is to end as a bug would.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jmapfs.cli.main import cli
from jmapfs.errors import JmapfsError
from jmapfs.snapshot.verify_record import Verification, save_verification
from tests.snapshot.commands import dates, require_whole
from tests.snapshot.fake_source import FakeAccount
from tests.snapshot.handmade import Letter, make_snapshot
from tests.snapshot.test_create import take
from tests.snapshot.test_list_snapshots import DATES, WHEN

LETTERS = [Letter(number) for number in range(1, 11)]
FILES = [
    f"{DATES[1]}/snapshot.json",
    f"{DATES[1]}/manifest.jsonl",
    f"{DATES[1]}/SHA256SUMS",
    ".jmapfs/verified.json",
]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a letter that is none": lambda content: content.replace(b"a", b"\xe1"),
    "no letters at all": lambda content: bytes(byte ^ 0x80 for byte in content),
    "deep": lambda _: b"[" * 100_000,
    "deeper": lambda _: b'{"x":' * 100_000,
    "another document": lambda _: b"[1]\n",
    "empty": lambda _: b"",
}


@pytest.fixture(params=FILES)
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file to damage, in a repository whose first snapshot is good."""
    first = make_snapshot(tmp_path, DATES[0], LETTERS[:8])
    make_snapshot(tmp_path, DATES[1], LETTERS, previous=first)
    for date in DATES[:2]:
        save_verification(tmp_path, date, Verification(WHEN, "good", quick=False))
    path: Path = tmp_path / request.param
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_command_crashes_on_a_damaged_snapshot(
    damaged: Path, tmp_path: Path, damage: str
) -> None:
    damaged.write_bytes(DAMAGES[damage](damaged.read_bytes()))
    for arguments in (
        ["snapshots", tmp_path],
        ["diff", tmp_path, *DATES[:2]],
        ["prune", "--dry-run", "--keep-last", "1", tmp_path],
        ["verify", tmp_path],
        ["verify", "--quick", tmp_path / DATES[1]],
    ):
        try:
            cli.main([str(one) for one in arguments], standalone_mode=False)
        except JmapfsError as error:
            assert error.exit_code != JmapfsError.exit_code  # noqa: PT017 - it may be none
    take(FakeAccount(LETTERS), tmp_path)
    *_, date = dates(tmp_path)
    assert date not in DATES
    require_whole(tmp_path / date)
