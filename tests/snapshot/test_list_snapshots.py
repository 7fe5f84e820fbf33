"""The list of snapshots: their descriptions, and the results of verification."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jmapfs.cli.snapshots_command import snapshots_command
from jmapfs.errors import UsageError
from jmapfs.snapshot.manifest import CHECKSUMS, DESCRIPTION, MANIFEST
from jmapfs.snapshot.overview import list_snapshots
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.verify_record import Outcome, Verification, save_verification
from tests.snapshot.handmade import Letter, make_snapshot

DATES = [f"2026-11-{day:02}T120000Z" for day in range(1, 4)]
WHEN = datetime(2026, 11, 20, 13, 14, 15, tzinfo=UTC)


@pytest.fixture
def snapshots(tmp_path: Path) -> list[Path]:
    made: list[Path] = []
    for date in DATES:
        letters = [Letter(number) for number in range(1200)] if date == DATES[0] else [Letter(1)]
        made.append(make_snapshot(tmp_path, date, letters, previous=made[-1] if made else None))
    return made


def verified(destination: Path, date: str, outcome: Outcome, *, quick: bool = False) -> None:
    save_verification(destination, date, Verification(WHEN, outcome, quick))


def states(destination: Path) -> list[str]:
    return [line.state for line in list_snapshots(Repository(destination)).snapshots]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(snapshots_command, [str(one) for one in arguments])


@pytest.mark.usefixtures("snapshots")
def test_the_table_lists_all_snapshots(tmp_path: Path) -> None:
    verified(tmp_path, DATES[1], "good", quick=True)
    verified(tmp_path, DATES[2], "missing")
    (tmp_path / ".partial-2026-11-04T120000Z").mkdir()
    (tmp_path / ".partial-2026-11-04T120000Z-2").mkdir()
    (tmp_path / ".partial-2026-10-04T120000Z-pruned").mkdir()
    (tmp_path / "2026-10-04T120000Z").mkdir()
    result = run(tmp_path)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "DATE                MAILS    NEW  GONE  ADDED  STATE     VERIFIED",
        "2026-11-01T120000Z  1,200  1,200     0    0 B  complete  never",
        "2026-11-02T120000Z      1      0     0    0 B  complete  2026-11-20 13:14: good (quick)",
        "2026-11-03T120000Z      1      0     0    0 B  damaged   2026-11-20 13:14: missing",
        "2 unfinished: the next run uses the mail fetched so far",
        "1 partly removed: the next prune removes the rest",
    ]


def test_json(tmp_path: Path, snapshots: list[Path]) -> None:
    (snapshots[0] / DESCRIPTION).unlink()
    verified(tmp_path, DATES[1], "extra")
    document = json.loads(run(tmp_path, "--json").output)
    assert (document["unfinished"], document["half_removed"]) == (0, 0)
    first, second, _ = document["snapshots"]
    known = {"date": DATES[0], "state": "damaged", "in_future": False}
    assert first == dict.fromkeys(first) | known
    assert second == {
        "date": DATES[1],
        "state": "complete",
        "mails": 1,
        "missing": 0,
        "shortfall": None,
        "files": 1,
        "bytes": len(Letter(1).bytes),
        "previous": DATES[0],
        "new": 0,
        "gone": 0,
        "added_bytes": 0,
        "in_future": False,
        "verified": {
            "when": "2026-11-20T13:14:15Z",
            "outcome": "extra",
            "quick": False,
            "online": False,
        },
    }


@pytest.mark.parametrize("file", [DESCRIPTION, MANIFEST, CHECKSUMS])
def test_a_missing_file_is_damage(tmp_path: Path, snapshots: list[Path], file: str) -> None:
    (snapshots[1] / file).unlink()
    assert states(tmp_path) == ["complete", "damaged", "complete"]


@pytest.mark.parametrize(
    ("content", "state"), [("{", "damaged"), ("[]", "damaged"), ('{"format": 99}', "unreadable")]
)
def test_an_invalid_description_is_damage(
    tmp_path: Path, snapshots: list[Path], content: str, state: str
) -> None:
    (snapshots[1] / DESCRIPTION).chmod(0o600)
    (snapshots[1] / DESCRIPTION).write_text(content)
    assert states(tmp_path) == ["complete", state, "complete"]
    assert run(tmp_path).exit_code == 0


def test_an_unreadable_snapshot_is_not_damaged(tmp_path: Path, snapshots: list[Path]) -> None:
    (snapshots[1] / MANIFEST).chmod(0)
    program = (
        "import sys; from pathlib import Path;"
        "from tests.snapshot.test_list_snapshots import states;"
        "print(states(Path(sys.argv[1])))"
    )
    # Without these capabilities, modes apply to root as well.
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*(without if os.geteuid() == 0 else []), sys.executable, "-c", program]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout == "['complete', 'unreadable', 'complete']\n"


@pytest.mark.usefixtures("snapshots")
def test_damage_is_shown_until_the_next_verification(tmp_path: Path) -> None:
    verified(tmp_path, DATES[0], "altered")
    assert states(tmp_path) == ["damaged", "complete", "complete"]
    verified(tmp_path, DATES[0], "good")
    assert states(tmp_path) == ["complete", "complete", "complete"]


def test_listing_writes_nothing_and_reads_no_manifest(
    tmp_path: Path, snapshots: list[Path]
) -> None:
    (snapshots[0] / MANIFEST).unlink()
    (snapshots[0] / MANIFEST).write_bytes(b"\0no line of a manifest")
    before = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert states(tmp_path) == ["complete", "complete", "complete"]
    assert sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_no_snapshots(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert (result.exit_code, result.output) == (0, "there are no snapshots\n")
    assert list(tmp_path.iterdir()) == []


def test_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for name in ("missing", "file"):
        assert isinstance(run(tmp_path / name).exception, UsageError)
