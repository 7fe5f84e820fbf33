"""The record of verifications: it lasts as long as the snapshots."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jmapfs.errors import StorageError
from jmapfs.snapshot.repository import Repository, repository_of
from jmapfs.snapshot.verify_record import (
    Outcome,
    Verification,
    VerificationRecord,
    save_verification,
)
from tests.snapshot.handmade import Letter, make_snapshot

DATES = ["2026-11-20T000000Z", "2026-11-21T000000Z"]
WHEN = datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC)


def document(date: str, outcome: str) -> bytes:
    one = {"when": "2026-11-20T00:00:00Z", "outcome": outcome, "quick": True}
    return json.dumps({"snapshots": {date: one}}).encode()


@pytest.fixture
def destination(tmp_path: Path) -> Repository:
    for date in DATES:
        make_snapshot(tmp_path, date, [Letter(1)])
    return Repository(tmp_path)


def file_of(destination: Repository) -> Path:
    return destination.path / ".jmapfs" / "verified.json"


def test_a_new_repository_has_no_record(destination: Repository) -> None:
    verified = VerificationRecord(destination.path)
    assert verified.find(DATES[0]) is None
    assert not verified.is_damaged(DATES[0])


@pytest.mark.parametrize(
    ("outcome", "damaged"),
    [("good", False), ("extra", False), ("missing", True), ("altered", True)],
)
def test_a_saved_verification_is_found(
    destination: Repository,
    outcome: Outcome,
    damaged: bool,  # noqa: FBT001
) -> None:
    verification = Verification(WHEN, outcome, quick=False)
    save_verification(destination.path, DATES[0], verification)
    save_verification(destination.path, DATES[1], Verification(WHEN, "good", quick=True))
    verified = VerificationRecord(destination.path)
    assert verified.find(DATES[0]) == verification
    assert verified.find(DATES[1]) == Verification(WHEN, "good", quick=True)
    assert verified.is_damaged(DATES[0]) == damaged
    assert stat.S_IMODE(file_of(destination).stat().st_mode) == 0o600
    assert [path.name for path in destination.state_directory.iterdir()] == ["verified.json"]


@pytest.mark.parametrize(
    ("other", "own", "suspect"),
    [
        ((60, "altered", False), None, True),
        ((60, "missing", True), None, True),
        ((0, "altered", False), None, True),
        ((-60, "altered", False), None, False),
        ((60, "good", False), None, False),
        ((60, "extra", False), None, False),
        ((60, "altered", False), (30, "good", False), True),
        ((60, "altered", False), (90, "good", False), False),
        ((60, "altered", False), (90, "extra", False), False),
        ((60, "altered", False), (90, "good", True), True),
        ((60, "good", False), (90, "altered", False), True),
    ],
)
def test_damage_found_later_concerns_snapshots_that_share_files(
    destination: Repository,
    other: tuple[int, Outcome, bool],
    own: tuple[int, Outcome, bool] | None,
    suspect: bool,  # noqa: FBT001
) -> None:
    """Another snapshot may share the damaged files."""
    taken = datetime(2026, 11, 21, tzinfo=UTC)
    for date, found in zip(DATES, (other, own), strict=True):
        if found is not None:
            seconds, outcome, quick = found
            when = taken + timedelta(seconds=seconds)
            save_verification(destination.path, date, Verification(when, outcome, quick))
    assert VerificationRecord(destination.path).may_be_damaged(DATES[1], taken) == suspect


@pytest.mark.parametrize(
    ("first", "then", "left"),
    [
        (("altered", False), ("good", True), 0),
        (("missing", False), ("extra", True), 0),
        (("missing", False), ("missing", True), 0),
        (("altered", False), ("good", False), 1),
        (("altered", True), ("good", True), 1),
        (("extra", False), ("good", True), 1),
        (("good", False), ("missing", True), 1),
        (("good", False), ("altered", False), 1),
    ],
)
def test_a_quick_verification_does_not_clear_damage(
    destination: Repository, first: tuple[Outcome, bool], then: tuple[Outcome, bool], left: int
) -> None:
    both = [
        Verification(WHEN + timedelta(hours=hour), outcome, quick=quick)
        for hour, (outcome, quick) in enumerate((first, then))
    ]
    for verification in both:
        save_verification(destination.path, DATES[0], verification)
    assert VerificationRecord(destination.path).find(DATES[0]) == both[left]


@pytest.mark.parametrize(
    ("then", "left"),
    [
        (Verification(WHEN, "good", quick=False), 0),
        (Verification(WHEN, "good", quick=True, online=True), 0),
        (Verification(WHEN, "good", quick=False, online=True), 1),
    ],
)
def test_only_an_online_verification_clears_what_one_found(
    destination: Repository, then: Verification, left: int
) -> None:
    both = [Verification(WHEN, "altered", quick=False, online=True), then]
    for verification in both:
        save_verification(destination.path, DATES[0], verification)
    assert VerificationRecord(destination.path).find(DATES[0]) == both[left]


@pytest.mark.parametrize(
    ("other", "own", "suspect"),
    [
        (("altered", True), None, True),
        (("altered", False), None, False),
        (("good", True), None, False),
        (("altered", True), ("good", False), True),
        (("altered", True), ("good", True), False),
        (("good", True), ("altered", True), True),
    ],
)
def test_only_online_verifications_tell_what_differs_from_the_server(
    destination: Repository,
    other: tuple[Outcome, bool],
    own: tuple[Outcome, bool] | None,
    suspect: bool,  # noqa: FBT001
) -> None:
    for seconds, (date, found) in enumerate(zip(DATES, (other, own), strict=True)):
        if found is not None:
            outcome, online = found
            when = WHEN + timedelta(seconds=seconds)
            save_verification(
                destination.path, date, Verification(when, outcome, quick=False, online=online)
            )
    record = VerificationRecord(destination.path)
    assert record.may_be_damaged(DATES[1], WHEN, online=True) == suspect


def test_removed_snapshots_are_dropped(destination: Repository) -> None:
    for date in DATES:
        save_verification(destination.path, date, Verification(WHEN, "good", quick=False))
    (destination.path / DATES[0]).rename(destination.path / "kept elsewhere")
    save_verification(destination.path, DATES[1], Verification(WHEN, "extra", quick=False))
    assert DATES[0] not in file_of(destination).read_text()
    assert VerificationRecord(destination.path).find(DATES[1]) is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"snapshots": {"2026-11-20T000000Z": {"when": 1}}}',
        document("../..", "good"),
        document(DATES[0], "fine"),
    ],
)
def test_an_invalid_record_counts_as_empty(destination: Repository, content: bytes) -> None:
    destination.state_directory.mkdir()
    file_of(destination).write_bytes(content)
    verified = VerificationRecord(destination.path)
    assert verified.find(DATES[0]) is None
    assert verified.find("../..") is None
    save_verification(destination.path, DATES[0], Verification(WHEN, "missing", quick=False))
    assert VerificationRecord(destination.path).is_damaged(DATES[0])


def test_a_record_that_is_no_file_counts_as_empty(destination: Repository) -> None:
    """A FIFO must not block a reader, and a link must not be followed."""
    destination.state_directory.mkdir()
    os.mkfifo(file_of(destination))
    assert VerificationRecord(destination.path).find(DATES[0]) is None
    save_verification(destination.path, DATES[0], Verification(WHEN, "good", quick=False))
    elsewhere = destination.path / "elsewhere.json"
    file_of(destination).rename(elsewhere)
    file_of(destination).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    assert VerificationRecord(destination.path).find(DATES[0]) is None
    save_verification(destination.path, DATES[0], Verification(WHEN, "altered", quick=False))
    assert VerificationRecord(destination.path).is_damaged(DATES[0])
    assert elsewhere.read_bytes() == before


def test_a_leftover_of_a_crash_is_replaced(destination: Repository) -> None:
    destination.state_directory.mkdir()
    (destination.state_directory / "verified.json.new").write_bytes(b"half")
    save_verification(destination.path, DATES[0], Verification(WHEN, "good", quick=False))
    assert [path.name for path in destination.state_directory.iterdir()] == ["verified.json"]


def test_the_record_is_synced_before_it_gets_its_name(
    destination: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination.state_directory.mkdir()
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def rename(old: Path, new: Path) -> None:
        steps.append(f"rename to {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    save_verification(destination.path, DATES[0], Verification(WHEN, "good", quick=False))
    assert steps == ["sync verified.json.new", "rename to verified.json", "sync .jmapfs"]


def test_a_record_that_cannot_be_written_is_an_error(destination: Repository) -> None:
    destination.state_directory.touch()
    with pytest.raises(StorageError, match="cannot be recorded"):
        save_verification(destination.path, DATES[0], Verification(WHEN, "good", quick=False))


def test_repository_of_a_snapshot(destination: Repository, tmp_path: Path) -> None:
    assert repository_of(tmp_path / DATES[0]) == destination
    alone = make_snapshot(tmp_path / "alone", DATES[0], [Letter(1)])
    assert repository_of(alone) is None
    (alone.parent / ".jmapfs").mkdir()
    assert repository_of(alone) == Repository(alone.parent)
    copy = (tmp_path / DATES[0]).rename(tmp_path / "copy")
    assert repository_of(copy) is None


def test_the_wait_for_the_lock_is_limited(
    destination: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process may be stopped."""
    monkeypatch.setattr("jmapfs.snapshot.verify_record._LOCK_SECONDS", 0.2)
    verification = Verification(WHEN, "good", quick=False)
    save_verification(destination.path, DATES[0], verification)
    descriptor = os.open(destination.state_directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another process has locked it"):
            save_verification(destination.path, DATES[1], verification)
    finally:
        os.close(descriptor)
    save_verification(destination.path, DATES[1], verification)
    assert VerificationRecord(destination.path).find(DATES[1]) == verification
