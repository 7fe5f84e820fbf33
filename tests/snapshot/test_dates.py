"""Snapshots that were made while the clock was wrong, and the way back to right dates."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from jmapfs.cli.main import cli
from jmapfs.errors import AlteredFilesError, UsageError
from jmapfs.snapshot import create, dates
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.dates import CorrectedDate, correct_dates
from jmapfs.snapshot.manifest import CHECKSUMS, DESCRIPTION, is_intact
from jmapfs.snapshot.overview import list_snapshots
from jmapfs.snapshot.prune import RetentionPolicy, prune
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from jmapfs.snapshot.verify_record import (
    Verification,
    VerificationRecord,
    copy_verification,
    save_verification,
)
from tests.snapshot.commands import RecordingReport, require_whole
from tests.snapshot.commands import dates as dates_in
from tests.snapshot.fake_source import FakeAccount
from tests.snapshot.handmade import letters, make_snapshot

RIGHT = ["2026-11-01T120000Z", "2026-11-02T120000Z"]
WRONG = ["2099-01-01T000000Z", "2099-01-01T000001Z", "2099-01-01T000002Z"]
MADE = [
    datetime(2098, 12, 31, tzinfo=UTC),
    *(datetime(2026, 11, day, tzinfo=UTC) for day in (4, 5)),
]
CORRECTED = ["2026-11-02T120001Z", "2026-11-04T000000Z", "2026-11-05T000000Z"]


def take(dest: Path, report: RecordingReport | None = None) -> SnapshotSummary:
    account = FakeAccount(letters(5))
    copy = partial(
        create_snapshot, account, Repository(dest), max_gone=50, report=report or RecordingReport()
    )
    return trio.run(copy)


def history(dest: Path, *, right: int = 2) -> list[Path]:
    """Make good snapshots, then one with a wrong clock, and two after the clock was right again."""
    made: list[Path] = []
    for date in (*RIGHT[:right], *WRONG):
        made.append(make_snapshot(dest, date, letters(5), previous=made[-1] if made else None))
    for path, when in zip(made[right:], MADE, strict=True):
        os.utime(path / DESCRIPTION, (when.timestamp(), when.timestamp()))
    (dest / "latest").symlink_to(WRONG[-1])
    return made


def corrected(dest: Path) -> list[CorrectedDate]:
    found: list[CorrectedDate] = []
    correct_dates(Repository(dest), found.append)
    return found


def test_a_date_in_the_future_is_told_and_can_be_corrected(tmp_path: Path) -> None:
    history(tmp_path)
    when = datetime(2026, 11, 6, tzinfo=UTC)
    save_verification(tmp_path, WRONG[1], Verification(when, "missing", quick=False))
    report = RecordingReport()
    assert take(tmp_path, report).date == "2099-01-01T000003Z"
    [notice] = [one for one in report.notices if "in the future" in one]
    assert f"jmapfs snapshots {tmp_path} --correct-dates" in notice
    table = CliRunner().invoke(cli, ["snapshots", str(tmp_path)])
    assert "4 have dates in the future: " in table.output

    contents = {path.stat().st_ino for path in tmp_path.rglob("*.eml")}
    result = CliRunner().invoke(cli, ["snapshots", str(tmp_path), "--correct-dates"])
    assert result.exit_code == 0
    assert "in the future" not in result.output
    *others, newest = dates_in(tmp_path)
    assert others == [*RIGHT, *CORRECTED]
    # The last one was made now.
    assert newest == Repository(tmp_path).latest_date()
    taken = datetime.strptime(newest, "%Y-%m-%dT%H%M%SZ").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - taken) < timedelta(minutes=5)
    for snapshot in Repository(tmp_path).snapshots():
        require_whole(snapshot.path)
        assert snapshot.description().date == snapshot.date
    assert {path.stat().st_ino for path in tmp_path.rglob("*.eml")} == contents
    # What verify has found belongs to the snapshot.
    assert VerificationRecord(tmp_path).is_damaged(CORRECTED[1])
    # A second time, nothing happens. New snapshots have true dates, and nothing is told.
    assert corrected(tmp_path) == []
    report = RecordingReport()
    assert take(tmp_path, report).date > newest
    assert not [one for one in report.notices if "clock" in one]


def test_if_all_dates_are_wrong_the_order_stays(tmp_path: Path) -> None:
    history(tmp_path, right=0)
    assert [one.new for one in corrected(tmp_path)] == ["2026-11-03T235959Z", *CORRECTED[1:]]


@pytest.mark.parametrize("steps", range(10))
def test_a_correction_that_is_killed_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    made = history(tmp_path)
    for one in made:
        save_verification(tmp_path, one.name, Verification(MADE[1], "missing", quick=False))
    done = 0

    def counted(step: object) -> object:
        def run(*arguments: object) -> object:
            nonlocal done
            done += 1
            if done > steps:
                raise KeyboardInterrupt
            assert callable(step)
            return step(*arguments)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(dates, "_replace", counted(dates._replace))
        patch.setattr(dates, "copy_verification", counted(copy_verification))
        patch.setattr(Repository, "set_latest", counted(Repository.set_latest))
        with pytest.raises(KeyboardInterrupt):
            corrected(tmp_path)
    assert done == steps + 1
    # Another verification drops the results of snapshots that are gone.
    save_verification(tmp_path, RIGHT[0], Verification(MADE[1], "missing", quick=False))
    corrected(tmp_path)
    assert dates_in(tmp_path) == [*RIGHT, *CORRECTED]
    for snapshot in Repository(tmp_path).snapshots():
        require_whole(snapshot.path)
        assert VerificationRecord(tmp_path).is_damaged(snapshot.date)
    assert Repository(tmp_path).latest_date() == CORRECTED[-1]


@pytest.mark.parametrize(
    ("damage", "summed"),
    [
        *((b"", False), (b"{}", False), (b'{\n  "date": "2099-01-01T000000Z"', False)),
        *((b"", True), (b"{}", True), (b'{\n  "date": "2099"', True)),
    ],
)
def test_a_damaged_snapshot_keeps_its_date(tmp_path: Path, damage: bytes, *, summed: bool) -> None:
    first = history(tmp_path)[2]
    (first / DESCRIPTION).chmod(0o600)
    (first / DESCRIPTION).write_bytes(damage)
    if summed:
        (first / CHECKSUMS).chmod(0o600)
        manifest, _ = (first / CHECKSUMS).read_bytes().splitlines(keepends=True)[-2:]
        (first / CHECKSUMS).write_bytes(manifest + dates._line(damage))
    with pytest.raises(AlteredFilesError, match=f"{first} is damaged"):
        corrected(tmp_path)
    assert dates_in(tmp_path) == [*RIGHT, *CORRECTED[1:], WRONG[0]]
    assert is_intact(first) == summed


def test_prune_leaves_snapshots_in_the_future_alone(tmp_path: Path) -> None:
    """All of them are of one day, so a rule for days would keep only one of them."""
    history(tmp_path)
    plan = prune(Repository(tmp_path), RetentionPolicy(daily=1), lambda _: None).plan
    assert dates_in(tmp_path) == [RIGHT[1], *WRONG]
    assert [one.date for one in plan.left_alone] == WRONG
    assert all("--correct-dates" in one.reason for one in plan.left_alone)
    assert Repository(tmp_path).latest_date() == WRONG[-1]
    corrected(tmp_path)
    prune(Repository(tmp_path), RetentionPolicy(daily=2), lambda _: None)
    assert dates_in(tmp_path) == CORRECTED[1:]


def test_prune_does_not_say_that_snapshots_in_the_future_do_not_exist(tmp_path: Path) -> None:
    make_snapshot(tmp_path, WRONG[0], letters(5))
    result = CliRunner().invoke(cli, ["prune", str(tmp_path), "--keep-last", "1"])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}: nothing is removed\n")
    assert "its date is in the future" in result.stderr
    # Otherwise a job of cron would remove nothing any more, and nobody would know.
    quiet = CliRunner().invoke(cli, ["prune", str(tmp_path), "--keep-last", "1", "--quiet"])
    assert (quiet.exit_code, quiet.stdout) == (0, "")
    [line] = quiet.stderr.splitlines()
    assert f"run jmapfs snapshots {tmp_path} --correct-dates" in line


class _Clock(datetime):
    """A clock that was reset."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        del tz
        return datetime(1970, 1, 1, 0, 5, tzinfo=UTC)


def test_a_clock_that_was_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = RecordingReport()
    with monkeypatch.context() as patch:
        patch.setattr(create, "datetime", _Clock)
        assert take(tmp_path, report).date == "1970-01-01T000500Z"
        assert "the clock of this machine is wrong" in report.notices[-1]
        # The dates still grow.
        make_snapshot(tmp_path, RIGHT[0], letters(5))
        assert take(tmp_path, report).date == "2026-11-01T120001Z"
        assert "or the clock of this machine is wrong" in report.notices[-1]
        # Nothing is removed while all dates seem to be in the future.
        patch.setattr("jmapfs.snapshot.prune.datetime", _Clock)
        prune(Repository(tmp_path), RetentionPolicy(last=1), lambda _: None)
    assert len(dates_in(tmp_path)) == 3
    assert not any(one.in_future for one in list_snapshots(Repository(tmp_path)).snapshots)


@pytest.mark.parametrize(
    "shown", [datetime(1970, 1, 2, tzinfo=UTC), datetime(2025, 3, 1, tzinfo=UTC)]
)
def test_no_date_is_corrected_while_the_clock_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: datetime
) -> None:
    """True dates would be lost. The mail shows that they are true."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            del tz
            return shown

    # These were received in December 2025.
    mails = letters(12, first=1_100_000)
    for date in RIGHT:
        make_snapshot(tmp_path, date, mails)
    with monkeypatch.context() as patch:
        patch.setattr(dates, "datetime", Clock)
        with pytest.raises(UsageError, match="the clock of this machine is wrong: it shows"):
            corrected(tmp_path)
    assert dates_in(tmp_path) == RIGHT


def test_a_few_mails_with_wrong_times_do_not_prevent_a_correction(tmp_path: Path) -> None:
    # These were received in 2042.
    mails = [*letters(5), *letters(9, first=10_000_000)]
    make_snapshot(tmp_path, WRONG[0], mails)
    [date] = [one.new for one in corrected(tmp_path)]
    assert dates_in(tmp_path) == [date]
    assert date < WRONG[0]


def test_the_last_possible_date(tmp_path: Path) -> None:
    make_snapshot(tmp_path, "9999-12-31T235959Z", letters(5))
    with pytest.raises(UsageError, match="--correct-dates"):
        take(tmp_path)
    corrected(tmp_path)
    take(tmp_path)


def test_damage_that_was_found_later_concerns_a_snapshot_with_a_wrong_date(tmp_path: Path) -> None:
    """The date of the snapshot is later than everything that was found after it was made."""
    made = history(tmp_path)
    when = datetime.now(UTC)
    save_verification(tmp_path, RIGHT[0], Verification(when, "altered", quick=False))
    for path in sorted(made[-1].rglob("*.eml"))[:2]:
        path.chmod(0o600)
        path.write_bytes(bytes(path.stat().st_size))
    summary = take(tmp_path)
    assert summary.fetched == 2
