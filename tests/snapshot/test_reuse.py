"""Content that is already there is used only if it is certain to be what the server has now."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from jmapfs.errors import IncompleteError, TooMuchGoneError
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.manifest import read_description, read_manifest
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from tests.snapshot.commands import RecordingReport, require_whole
from tests.snapshot.fake_source import FakeAccount
from tests.snapshot.handmade import Letter, make_snapshot
from tests.snapshot.verification import verified


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


def letters(count: int) -> list[Letter]:
    return [Letter(number) for number in range(1, count + 1)]


def others(count: int) -> list[Letter]:
    """Return other letters with the same numbers and sizes."""
    return [replace(one, content=one.bytes.replace(b"Text", b"Mail")) for one in letters(count)]


def take(
    account: FakeAccount, dest: Path, report: RecordingReport | None = None, max_gone: float = 50
) -> SnapshotSummary:
    report = report or RecordingReport()
    create = partial(create_snapshot, account, Repository(dest), max_gone=max_gone, report=report)
    summary = trio.run(create)
    require_whole(Path(summary.path))
    assert contents(summary) == {one.number: one.bytes for one in account.letters}
    return summary


def contents(summary: SnapshotSummary) -> dict[int, bytes]:
    """Return the contents of the files of a snapshot by the number of the letter."""
    return {int(path.stem): path.read_bytes() for path in Path(summary.path).rglob("*.eml")}


@pytest.mark.parametrize("are_sha1", [True, False])
@pytest.mark.parametrize("wrong", [b"<html>Log in</html>", Letter(7).bytes[:-3]])
def test_a_file_of_another_size_is_replaced(dest: Path, wrong: bytes, *, are_sha1: bool) -> None:
    """An earlier version believed the server, and recorded the size of what it got."""
    made = [replace(one, content=wrong) if one.number == 7 else one for one in letters(40)]
    first = make_snapshot(dest, "2026-11-22T010203Z", made)
    assert (first / "mail/Inbox/0007.eml").read_bytes() == wrong
    account = FakeAccount(letters(40), blob_ids_are_sha1=are_sha1)
    summary = take(account, dest)
    assert (summary.replaced, summary.fetched, summary.new, summary.gone) == (1, 1, 0, 0)
    again = take(account, dest)
    assert (again.replaced, again.fetched) == (0, 0)


def test_a_confirmed_size_is_recorded_and_reused(dest: Path) -> None:
    """Also if the next run expects the stated size, because the cache was deleted."""
    account = FakeAccount(letters(10), sizes={3: 5})
    summary = take(account, dest)
    true_size = len(Letter(3).bytes)
    mails = {mail.id: mail for _, mail in read_manifest(Path(summary.path))}
    assert (mails["M3"].size, mails["M3"].confirmed_size) == (5, true_size)
    assert mails["M4"].confirmed_size is None
    assert (Path(summary.path) / "manifest.jsonl").read_bytes().count(b"confirmedSize") == 1
    assert summary.bytes == sum(len(one.bytes) for one in letters(10))
    assert verified(Path(summary.path)).findings == []
    again = take(account, dest)
    assert (again.fetched, again.replaced) == (0, 0)
    account.sizes = {3: 6}
    assert take(account, dest).fetched == 1


# --- Resets


@pytest.mark.parametrize("with_epoch", [True, False])
def test_after_a_reset_nothing_is_shared(dest: Path, *, with_epoch: bool) -> None:
    """The ids, the sizes and even some times of receipt are the same again."""
    if with_epoch:
        take(FakeAccount(letters(20)), dest)
    else:
        make_snapshot(dest, "2026-11-22T010203Z", letters(20))
    report = RecordingReport()
    account = FakeAccount(others(20), epoch="e2")
    if with_epoch:
        account.letters[0] = Letter(1, content=Letter(1).bytes + b"!")
    else:
        account.later = 1
    summary = take(account, dest, report, max_gone=100)
    assert summary.fetched == 20
    assert "was reset" in report.notices[0]
    assert read_description(Path(summary.path)).epoch == "e2"
    report.notices.clear()
    assert take(account, dest, report).fetched == 0
    assert report.notices == []


def test_mail_with_other_times_counts_as_gone(dest: Path) -> None:
    take(FakeAccount(letters(20)), dest)
    account = FakeAccount(others(20), epoch="e2", later=60)
    with pytest.raises(TooMuchGoneError, match="20 of the 20"):
        take(account, dest)


def test_another_epoch_alone_is_no_reset(dest: Path) -> None:
    """The cache was deleted, or another machine makes the snapshot."""
    take(FakeAccount(letters(20)), dest)
    report = RecordingReport()
    assert take(FakeAccount(letters(20), epoch="e2"), dest, report).fetched == 0
    assert report.notices == []


def test_emails_are_compared_only_if_the_epoch_is_not_known(dest: Path) -> None:
    account = FakeAccount(letters(21))
    take(account, dest)
    for epoch, are_sha1, passes in (
        ("e1", False, 1),
        ("e2", False, 2),
        ("", False, 2),
        ("", False, 2),
        ("", True, 1),
    ):
        account.epoch, account.blob_ids_are_sha1, account.listed = epoch, are_sha1, 0
        assert take(account, dest).fetched == 0
        assert account.listed == 3 * passes


def test_contents_of_an_interrupted_run_belong_to_an_epoch(dest: Path) -> None:
    account = FakeAccount(letters(20), unavailable={20})
    with pytest.raises(IncompleteError):
        take(account, dest)
    assert len(account.downloaded) == 19
    reset = FakeAccount(others(20), epoch="e2")
    summary = take(reset, dest)
    assert (summary.taken_over, summary.fetched) == (0, 20)


def test_contents_of_an_interrupted_run_must_have_the_size(dest: Path) -> None:
    account = FakeAccount(letters(20), unavailable={20}, sizes={3: 5})
    with pytest.raises(IncompleteError):
        take(account, dest)
    account.unavailable.clear()
    account.sizes.clear()
    account.letters[3] = Letter(4, content=b"Subject: longer\r\n\r\nThan before.\r\n")
    summary = take(account, dest)
    # The third has the size that is stated now, the fourth has not.
    assert (summary.taken_over, summary.fetched) == (18, 2)


def test_a_reset_between_two_attempts(dest: Path) -> None:
    """What the first attempt has downloaded is not used under the new ids."""
    account = FakeAccount(letters(20), unavailable={20})

    def reset(attempt: int) -> None:
        if attempt == 2:
            account.letters, account.epoch = others(20), "e2"
            account.unavailable.clear()

    account.opened = reset
    assert take(account, dest).attempts == 2
