"""Mail that cannot be downloaded is named, and a snapshot can be made without it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from jmapfs.snapshot import transfer
from jmapfs.snapshot.create import FailedDownloadsError, create_snapshot
from jmapfs.snapshot.manifest import MISSING, read_description
from jmapfs.snapshot.missing import MissingMail, read_missing
from jmapfs.snapshot.overview import list_snapshots
from jmapfs.snapshot.prune import FEWEST_LACKING, LAST_GOOD, RetentionPolicy, plan_pruning
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from jmapfs.tree.status_file import BadEmailStatus, Lacking, MailboxShortfall, ShortfallStatus
from tests.snapshot.commands import RecordingReport, dates, require_whole
from tests.snapshot.fake_source import FakeAccount
from tests.snapshot.handmade import Letter, letters
from tests.snapshot.verification import verified

BAD = Lacking((BadEmailStatus("X1", "the server sends no blobId", "2026-11-27T00:00:00+00:00"),))
SHORTFALL = ShortfallStatus(
    "2026-11-27T00:00:00+00:00", 10, 12, (MailboxShortfall("Inbox", 8, 10),)
)


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


def take(
    account: FakeAccount,
    dest: Path,
    *,
    skip_bad: bool = True,
    max_gone: float = 50,
) -> SnapshotSummary:
    summary = trio.run(
        partial(
            create_snapshot,
            account,
            Repository(dest),
            max_gone=max_gone,
            report=RecordingReport(),
            skip_bad=skip_bad,
        )
    )
    require_whole(Path(summary.path))
    return summary


def failure(account: FakeAccount, dest: Path, *, skip_bad: bool = False) -> FailedDownloadsError:
    before = dates(dest)
    with pytest.raises(FailedDownloadsError) as raised:
        take(account, dest, skip_bad=skip_bad)
    assert dates(dest) == before
    return raised.value


def named(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the files of the mails in a list of missing mails, by email id."""
    return {mail.id: mail.files for mail in read_missing(path)}


def test_each_mail_that_cannot_be_downloaded_is_named(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def fsync_recorded(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_recorded)
    account = FakeAccount(letters(40), unavailable={7, 20, 21})
    error = failure(account, dest)
    assert "3 mails cannot be downloaded: Inbox/0007.eml: no blob B7" in str(error)
    assert error.missing.first[0] == MissingMail(
        "M7", "B7", "2023-11-14T22:20:20Z", len(Letter(7).bytes), ("Inbox/0007.eml",), "no blob B7"
    )
    path = error.missing.path
    assert named(path) == {
        "M7": ("Inbox/0007.eml",),
        "M20": ("Inbox/0020.eml", "Work/0020.eml"),
        "M21": ("Inbox/0021.eml",),
    }
    assert {str(path), str(path.parent)} <= set(synced)
    account.unavailable = {21}
    assert set(named(failure(account, dest).missing.path)) == {"M21"}
    assert len(Repository(dest).unfinished()) == 1


def test_all_emails_of_a_bad_blob_are_named(dest: Path) -> None:
    """Also if they are in different parts."""
    account = FakeAccount([*letters(20), Letter(3, ("Work",))], unavailable={3}, part=1)
    for skip_bad in (False, True):
        if skip_bad:
            path = Path(take(account, dest).path) / MISSING
        else:
            path = failure(account, dest).missing.path
        assert [mail.files for mail in read_missing(path)] == [
            ("Inbox/0003.eml",),
            ("Work/0003.eml",),
        ]


def test_a_snapshot_without_bad_mail(dest: Path) -> None:
    account = FakeAccount(letters(40), unavailable={7, 20})
    summary = take(account, dest)
    assert (summary.mails, summary.files, summary.missing, summary.attempts) == (38, 45, 2, 2)
    path = Path(summary.path)
    assert set(named(path / MISSING)) == {"M7", "M20"}
    assert not Repository(dest).unfinished()
    assert (dest / "latest").resolve() == path
    described = read_description(path)
    assert (described.missing, described.mails) == (2, 38)
    result = verified(path)
    assert result.findings == []
    assert "2 mails that could not be downloaded" in result.remarks[0]
    [line] = list_snapshots(Repository(dest)).snapshots
    assert (line.state, line.missing) == ("incomplete", 2)
    again = take(account, dest)
    assert (again.missing, again.fetched, again.gone, again.new) == (2, 0, 0, 0)
    account.unavailable.clear()
    complete = take(account, dest)
    assert (complete.missing, complete.fetched, complete.new) == (0, 2, 2)
    assert not (Path(complete.path) / MISSING).exists()
    assert list_snapshots(Repository(dest)).snapshots[-1].state == "complete"


def test_new_bad_mail_is_tried_again(dest: Path) -> None:
    """A mail is skipped only if it has failed twice, or after the last attempt."""
    account = FakeAccount([])

    def next_attempt(attempt: int) -> None:
        account.letters = [*letters(40), Letter(100 + attempt)]
        account.unavailable = {100 + attempt}

    account.opened = next_attempt
    summary = take(account, dest)
    assert (summary.attempts, summary.missing) == (5, 1)
    assert set(named(Path(summary.path) / MISSING)) == {"M105"}


def test_missing_mail_is_not_gone(dest: Path) -> None:
    account = FakeAccount(letters(10))
    take(account, dest)
    # The server states other sizes, so the files of the first snapshot are not used.
    account.sizes = dict.fromkeys(range(1, 11), 5)
    account.unavailable = set(range(1, 11))
    summary = take(account, dest, max_gone=0)
    assert (summary.gone, summary.missing, summary.mails) == (0, 10, 0)


@pytest.mark.parametrize("skip_bad", [True, False])
def test_it_gives_up_if_everything_fails(
    dest: Path, monkeypatch: pytest.MonkeyPatch, *, skip_bad: bool
) -> None:
    monkeypatch.setattr(transfer, "_MAX_FAILED", 20)
    account = FakeAccount(letters(400), unavailable=set(range(100, 401)))
    error = failure(account, dest, skip_bad=skip_bad)
    assert "the others were not tried" in str(error)
    assert account.attempts == 1
    listed = [mail.id for mail in read_missing(error.missing.path)]
    assert 20 < len(listed) == error.missing.count < 60
    assert len(set(listed)) == len(listed)


def test_many_bad_mails_among_good_ones(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_MAX_FAILED", 20)
    account = FakeAccount(letters(400), unavailable=set(range(2, 401, 2)))
    assert take(account, dest).missing == 200
    assert failure(account, dest).missing.count == 200


def test_more_bad_mails_than_good_ones(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second attempt, whole requests have only mails that failed before."""
    monkeypatch.setattr(transfer, "_MAX_FAILED", 20)
    bad = {number for number in range(1, 401) if number % 5}
    account = FakeAccount(letters(400), unavailable=bad)
    summary = take(account, dest)
    assert (summary.mails, summary.missing) == (80, 320)


# --- verify and prune


@pytest.mark.parametrize(
    ("damage", "kind"),
    [("altered", "altered"), ("removed", "missing"), ("sum", "altered"), ("added", "extra")],
)
def test_verify_knows_the_list(dest: Path, damage: str, kind: str) -> None:
    account = FakeAccount(letters(10), unavailable={7})
    if damage == "added":
        account.unavailable.clear()
    path = Path(take(account, dest).path)
    missing, sums = path / MISSING, path / "SHA256SUMS"
    if damage == "altered":
        content = missing.read_bytes()
        missing.chmod(0o600)
        missing.write_bytes(content.replace(b"M7", b"M8"))
    elif damage == "removed":
        missing.unlink()
    elif damage == "added":
        missing.write_bytes(b"{}")
    else:
        lines = sums.read_bytes().splitlines(keepends=True)
        assert MISSING.encode() in lines[-3]
        lines[-3] = b"0" * 64 + lines[-3][64:]
        sums.chmod(0o600)
        sums.write_bytes(b"".join(lines))
    [finding] = verified(path).findings
    assert (finding.path, finding.kind) == ("SHA256SUMS" if damage == "sum" else MISSING, kind)


@pytest.mark.parametrize("name", ["snapshot.json", "manifest.jsonl"])
def test_the_list_is_expected_even_if_other_metadata_is_damaged(dest: Path, name: str) -> None:
    path = Path(take(FakeAccount(letters(10), unavailable={7}), dest).path)
    damaged = path / name
    content = bytearray(damaged.read_bytes())
    content[5] ^= 1
    damaged.chmod(0o600)
    damaged.write_bytes(content)
    assert [finding.path for finding in verified(path).findings] == [name]


def test_prune_prefers_complete_snapshots(dest: Path) -> None:
    account = FakeAccount(letters(10))
    complete = take(account, dest).date
    account.letters, account.unavailable = letters(12), {12}
    incomplete = take(account, dest).date
    plan = plan_pruning(Repository(dest), RetentionPolicy(last=1))
    verdicts = {one.date: one for one in plan.snapshots}
    assert verdicts[complete].kept
    assert LAST_GOOD in verdicts[complete].reasons
    assert verdicts[incomplete].kept
    assert verdicts[incomplete].incomplete
    account.unavailable.clear()
    newest = take(account, dest).date
    plan = plan_pruning(Repository(dest), RetentionPolicy(last=1))
    assert [one.date for one in plan.snapshots if one.kept] == [newest]


@pytest.mark.parametrize("lacking", [Lacking(), Lacking((), SHORTFALL)])
def test_prune_works_although_no_snapshot_is_complete(dest: Path, lacking: Lacking) -> None:
    account = FakeAccount(letters(10), unavailable={7}, lacking=lacking)
    best = [take(account, dest).date for _ in range(3)][-1]
    account.letters, account.unavailable = letters(12), {7, 12}
    newest = [take(account, dest).date for _ in range(2)][-1]
    plan = plan_pruning(Repository(dest), RetentionPolicy(last=1))
    reasons = {one.date: one.reasons for one in plan.snapshots if one.kept}
    assert reasons == {best: (FEWEST_LACKING,), newest: ("last",)}


def test_a_bad_email_is_named_by_its_id(dest: Path) -> None:
    account = FakeAccount(letters(10), lacking=BAD)
    error = failure(account, dest)
    assert account.attempts == 1
    assert str(error) == (
        "no snapshot was made: a mail cannot be downloaded: email X1: the server sends no blobId"
        " (--skip-bad makes a snapshot without such mail)"
    )
    [mail] = read_missing(error.missing.path)
    assert mail == MissingMail("X1", None, None, None, (), "the server sends no blobId")


def test_a_snapshot_without_a_bad_email(dest: Path) -> None:
    account = FakeAccount(letters(10), unavailable={7}, lacking=BAD)
    summary = take(account, dest)
    assert (summary.mails, summary.missing, summary.attempts) == (9, 2, 2)
    path = Path(summary.path)
    assert named(path / MISSING) == {"X1": (), "M7": ("Inbox/0007.eml",)}
    assert verified(path).findings == []
    account.unavailable.clear()
    summary = take(account, dest)
    assert (summary.missing, summary.fetched, summary.attempts) == (1, 1, 1)
    account.lacking = Lacking()
    assert take(account, dest, skip_bad=False).missing == 0


def test_a_shortfall_makes_an_incomplete_snapshot(dest: Path) -> None:
    account = FakeAccount(letters(10), lacking=Lacking((), SHORTFALL))
    summary = take(account, dest, skip_bad=False)
    assert (summary.mails, summary.missing, summary.shortfall) == (10, 0, SHORTFALL)
    path = Path(summary.path)
    assert not (path / MISSING).exists()
    assert read_description(path).shortfall == SHORTFALL
    result = verified(path)
    assert result.findings == []
    [remark] = result.remarks
    assert remark == (
        "the snapshot was made without 2 mails that the server counted, but did not list: see"
        " snapshot.json"
    )
    [line] = list_snapshots(Repository(dest)).snapshots
    assert (line.state, line.missing, line.shortfall) == ("incomplete", 0, SHORTFALL)
    account.letters, account.unavailable = letters(11), {11}
    [remark] = verified(Path(take(account, dest).path)).remarks
    assert remark == (
        "the snapshot was made without a mail that could not be downloaded and 2 mails that the"
        " server counted, but did not list: see missing.jsonl and snapshot.json"
    )
    account.unavailable = set()
    account.lacking = Lacking()
    assert take(account, dest, skip_bad=False).shortfall is None
    assert list_snapshots(Repository(dest)).snapshots[-1].state == "complete"


@pytest.mark.parametrize(("compared_at", "text"), [(0.0, ""), (1.7e9, "2023-11-14T22:13:20+00:00")])
def test_a_snapshot_has_the_time_of_the_last_comparison(
    dest: Path, compared_at: float, text: str
) -> None:
    """An account that changes all the time is not compared: nothing is known to be missing."""
    path = Path(take(FakeAccount(letters(10), compared_at=compared_at), dest).path)
    assert read_description(path).compared_at == text


def test_prune_works_although_all_snapshots_have_a_shortfall(dest: Path) -> None:
    account = FakeAccount(letters(10), lacking=Lacking((), SHORTFALL))
    newest = [take(account, dest).date for _ in range(3)][-1]
    plan = plan_pruning(Repository(dest), RetentionPolicy(last=1))
    assert [one.date for one in plan.snapshots if one.kept] == [newest]
    account.lacking = Lacking()
    complete = take(account, dest).date
    account.lacking = Lacking((), SHORTFALL)
    newest = take(account, dest).date
    plan = plan_pruning(Repository(dest), RetentionPolicy(last=1))
    assert [one.date for one in plan.snapshots if one.kept] == [complete, newest]
