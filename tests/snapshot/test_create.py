"""Creating a snapshot with all kinds of accounts, earlier runs and file systems."""

from __future__ import annotations

import errno
import itertools
import json
import os
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmapfs.errors import (
    BusyError,
    ConfigError,
    IncompleteError,
    JmapfsError,
    StorageError,
    TooMuchGoneError,
    UsageError,
)
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.files import FileSystem
from jmapfs.snapshot.manifest import Origin, read_description
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from jmapfs.snapshot.verify_record import Verification, save_verification
from tests.cache.small_disk import needs_root, tmpfs
from tests.mounts import command
from tests.snapshot.commands import RecordingReport, dates, everything_in, require_whole
from tests.snapshot.fake_source import FakeAccount
from tests.snapshot.handmade import Letter, letters, make_snapshot


@pytest.fixture
def listener() -> RecordingReport:
    return RecordingReport()


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


def take(
    account: FakeAccount, dest: Path, listener: RecordingReport | None = None, max_gone: float = 50
) -> SnapshotSummary:
    summary = trio.run(
        partial(
            create_snapshot,
            account,
            Repository(dest),
            max_gone=max_gone,
            report=listener or RecordingReport(),
        )
    )
    require_whole(Path(summary.path))
    assert not Repository(dest).unfinished()
    assert (dest / "latest").resolve() == Path(summary.path)
    return summary


def refused(
    account: FakeAccount, dest: Path, error: type[JmapfsError], max_gone: float = 50
) -> JmapfsError:
    before = dates(dest)
    with pytest.raises(error) as raised:
        take(account, dest, max_gone=max_gone)
    assert dates(dest) == before
    return raised.value


def test_a_snapshot_has_all_mail(dest: Path, listener: RecordingReport) -> None:
    summary = take(FakeAccount(letters(40)), dest, listener)
    assert (summary.mails, summary.files, summary.new, summary.gone) == (40, 48, 40, 0)
    assert summary.bytes == summary.fetched_bytes == sum(len(one.bytes) for one in letters(40))
    assert (summary.fetched, summary.taken_over, summary.attempts) == (40, 0, 1)
    assert listener.progress[-1] == (40, 40)
    assert [mails for mails, _ in listener.progress] == sorted(m for m, _ in listener.progress)
    described = read_description(Path(summary.path))
    assert (described.mails, described.files, described.bytes) == (40, 48, summary.bytes)
    assert described.date == summary.date == Path(summary.path).name
    for path in Path(summary.path).rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o400)
    assert dest.stat().st_mode & 0o777 == 0o700


def test_an_empty_account_has_an_empty_snapshot(dest: Path) -> None:
    assert take(FakeAccount([]), dest).mails == 0
    assert take(FakeAccount([]), dest).mails == 0


def test_files_have_the_time_of_receipt(dest: Path) -> None:
    summary = take(FakeAccount(letters(3)), dest)
    times = {path.name: path.stat().st_mtime for path in Path(summary.path).rglob("*.eml")}
    assert times == {f"{number:04}.eml": 1_700_000_000 + 60 * number for number in (1, 2, 3)}


def test_unchanged_mail_is_linked(dest: Path) -> None:
    account = FakeAccount(letters(40))
    first = Path(take(account, dest).path)
    account.letters = letters(30, first=11) + letters(5, first=100)
    account.downloaded.clear()
    summary = take(account, dest)
    assert sorted(account.downloaded) == [f"B{number}" for number in range(100, 105)]
    assert (summary.new, summary.gone, summary.fetched) == (5, 10, 5)
    assert summary.previous == first.name
    for path in first.rglob("*.eml"):
        later = Path(summary.path) / path.relative_to(first)
        assert not later.exists() or later.samefile(path)


def test_two_emails_with_one_blob_are_one_file(dest: Path) -> None:
    """Also if they are in different parts, and if the base snapshot has the blob."""
    twin = Letter(1, ("Work",))
    account = FakeAccount([Letter(1), *letters(20, first=2)], part=1)
    account.letters.insert(1, twin)
    summary = take(account, dest)
    assert (summary.mails, summary.fetched) == (22, 21)
    one, other = (Path(summary.path, "mail", name, "0001.eml") for name in ("Inbox", "Work"))
    assert one.samefile(other)
    again = take(account, dest)
    assert again.fetched == 0
    assert Path(again.path, "mail", "Work", "0001.eml").samefile(one)


# --- Failed downloads


def test_the_next_state_is_copied_if_mail_disappears(dest: Path) -> None:
    account = FakeAccount(letters(40), unavailable={7, 23})

    def vanish(attempt: int) -> None:
        if attempt == 2:
            account.letters = [one for one in account.letters if one.number not in {7, 23}]

    account.opened = vanish
    summary = take(account, dest)
    assert (summary.mails, summary.attempts, summary.fetched, summary.taken_over) == (38, 2, 38, 0)
    assert len(account.downloaded) == 38
    assert summary.fetched_bytes == summary.bytes


def test_attempts_are_limited(dest: Path) -> None:
    account = FakeAccount(letters(40))

    def vanish(attempt: int) -> None:
        account.unavailable = {100 + attempt}
        account.letters = [*letters(40), Letter(100 + attempt)]

    account.opened = vanish
    assert "a mail cannot be downloaded" in str(refused(account, dest, IncompleteError))
    assert account.attempts == 5
    assert len(account.downloaded) == 40


def test_unavailable_mail_is_an_error(dest: Path) -> None:
    account = FakeAccount(letters(40), unavailable={7, 23})
    error = refused(account, dest, IncompleteError)
    assert "2 mails cannot be downloaded" in str(error)
    assert account.attempts == 2
    account.unavailable.clear()
    summary = take(account, dest)
    assert (summary.fetched, summary.taken_over) == (2, 38)


def test_with_many_failures_the_rest_is_not_tried(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jmapfs.snapshot.transfer._MAX_FAILED", 20)
    account = FakeAccount(letters(400), unavailable=set(range(100, 500)))
    assert "cannot be downloaded" in str(refused(account, dest, IncompleteError))
    assert len(account.downloaded) < 120


def test_a_mount_thawed_during_the_copy_is_an_error(dest: Path) -> None:
    account = FakeAccount(letters(10), stays_frozen=False)
    assert "thawed" in str(refused(account, dest, StorageError))
    account.stays_frozen = True
    assert take(account, dest).fetched == 0


# --- Gone mail


@pytest.mark.parametrize(("kept", "max_gone", "stopped"), [(5, 50, 0), (4, 50, 1), (9, 0, 1)])
def test_more_gone_than_allowed_is_an_error(
    dest: Path, kept: int, max_gone: float, stopped: int
) -> None:
    account = FakeAccount(letters(10))
    take(account, dest)
    account.letters = letters(kept)
    if not stopped:
        assert take(account, dest, max_gone=max_gone).gone == 10 - kept
        return
    error = refused(account, dest, TooMuchGoneError, max_gone)
    assert f"{10 - kept} of the 10 mails" in str(error)
    assert "--max-gone 100" in str(error)
    assert take(account, dest, max_gone=100).gone == 10 - kept


def test_an_account_that_became_empty_is_an_error(dest: Path) -> None:
    account = FakeAccount(letters(10))
    take(account, dest)
    account.letters = []
    refused(account, dest, TooMuchGoneError)


def test_new_mail_does_not_hide_gone_mail(dest: Path) -> None:
    account = FakeAccount(letters(10))
    take(account, dest)
    account.letters = letters(1000, first=100)
    refused(account, dest, TooMuchGoneError)


# --- The repository


def test_a_repository_of_another_account_is_refused(dest: Path) -> None:
    account = FakeAccount(letters(10))
    take(account, dest)
    for changed in (
        {"account_id": "u2"},
        {"server": "https://mail.example:8443/jmap/"},
        {"username": "bob@mail.example"},
        {"directory": "Work"},
    ):
        members: dict[str, Any] = {
            name: getattr(account.origin, name) for name in Origin.__struct_fields__
        }
        other = FakeAccount(letters(10), origin=Origin(**members | changed))
        assert "choose another directory" in str(refused(other, dest, ConfigError))
    # A server may move its API and rename the account.
    origin = Origin("https://mail.example/api/2", "u1", "Alice", account.origin.username)
    take(FakeAccount(letters(10), origin=origin), dest)


def test_an_interrupted_first_run_of_another_account_is_refused(dest: Path) -> None:
    refused(FakeAccount(letters(10), unavailable={1}), dest, IncompleteError)
    other = FakeAccount(letters(10), origin=Origin("https://mail.example/", "u2", "bob", "bob"))
    refused(other, dest, ConfigError)


@pytest.mark.parametrize("name", ["missing/dest", "file", "file/dest"])
def test_an_impossible_destination_is_a_usage_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        take(FakeAccount([]), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_locked_repository_is_refused(dest: Path) -> None:
    account = FakeAccount(letters(5))
    take(account, dest)
    with Repository(dest).lock():
        refused(account, dest, BusyError)
    take(account, dest)


def test_foreign_files_are_left_alone(dest: Path) -> None:
    make = [
        "notes.txt",
        "lost+found/x",
        ".partial-of-mine/x",
        ".partial-2024/x",
        "2024-13-45T000000Z/x",
        "2024-01-02T030405Z/x",
        "latest/x",
    ]
    for name in make:
        path = dest / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    before = everything_in(dest)
    account = FakeAccount(letters(10))
    refused(account, dest, UsageError)
    summary = trio.run(
        partial(
            create_snapshot,
            account,
            Repository(dest),
            max_gone=50,
            report=RecordingReport(),
            force=True,
        )
    )
    require_whole(Path(summary.path))
    after = everything_in(dest)
    assert {path: after[path] for path in before} == before


def test_dates_grow_even_if_the_clock_is_set_back(dest: Path) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    make_snapshot(dest, tomorrow.strftime("%Y-%m-%dT%H%M%SZ"), letters(10))
    summary = take(FakeAccount(letters(12)), dest)
    assert summary.date == (tomorrow + timedelta(seconds=1)).strftime("%Y-%m-%dT%H%M%SZ")
    assert summary.fetched == 2
    assert dates(dest)[-1] == summary.date


def test_dates_in_one_second_are_different(dest: Path) -> None:
    account = FakeAccount(letters(3))
    taken = [take(account, dest).date for _ in range(4)]
    assert taken == sorted(set(taken)) == dates(dest)


@needs_root
def test_a_full_disk_is_an_error_and_the_next_run_goes_on(tmp_path: Path) -> None:
    account = FakeAccount([Letter(number, content=os.urandom(30_000)) for number in range(1, 60)])
    with tmpfs(tmp_path / "disk", "1m") as disk:
        dest = disk / "dest"
        error = refused(account, dest, StorageError)
        assert "No space left" in str(error)
        came = len(account.downloaded)
        command("mount", "-o", "remount,size=4m", disk)
        summary = take(account, dest)
        assert summary.taken_over > 10
        assert summary.fetched + summary.taken_over == 59
        assert came < 59
        earlier = everything_in(Path(summary.path))
        # Full again in a later run: existing snapshots do not change.
        account.letters += [Letter(n, content=os.urandom(30_000)) for n in range(100, 250)]
        refused(account, dest, StorageError)
        assert everything_in(Path(summary.path)) == earlier
        require_whole(Path(summary.path))


# --- Earlier runs


def test_a_damaged_snapshot_is_not_built_upon(dest: Path, listener: RecordingReport) -> None:
    """The one before it is the base."""
    account = FakeAccount(letters(20))
    take(account, dest)
    account.letters = letters(30)
    second = Path(take(account, dest).path)
    manifest = second / "manifest.jsonl"
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes().replace(b'"Inbox"', b'"Inboy"', 1))
    account.downloaded.clear()
    summary = take(account, dest, listener)
    assert len(account.downloaded) == 10
    assert any(str(second) in notice for notice in listener.notices)
    assert summary.previous == dates(dest)[0]


def test_a_missing_or_truncated_file_is_downloaded_again(dest: Path) -> None:
    account = FakeAccount(letters(20))
    first = Path(take(account, dest).path)
    (first / "mail/Inbox/0003.eml").unlink()
    (first / "mail/Inbox/0004.eml").chmod(0o600)
    os.truncate(first / "mail/Inbox/0004.eml", 3)
    # The mail in two mailboxes still has its other file.
    (first / "mail/Inbox/0005.eml").unlink()
    account.downloaded.clear()
    take(account, dest)
    assert sorted(account.downloaded) == ["B3", "B4"]


@pytest.mark.parametrize("found_in", ["the last", "the one before"])
def test_a_file_that_verify_found_altered_is_downloaded_again(dest: Path, found_in: str) -> None:
    """The size is the same, so only reading shows it; links would repeat it in all snapshots."""
    account = FakeAccount(letters(20))
    first = Path(take(account, dest).path)
    altered = first / "mail/Inbox/0003.eml"
    altered.chmod(0o600)
    altered.write_bytes(b"x" * altered.stat().st_size)
    account.downloaded.clear()
    # Nothing has found it yet.
    date = trio.run(
        partial(create_snapshot, account, Repository(dest), max_gone=50, report=RecordingReport())
    ).date
    assert account.downloaded == []
    # Dates of snapshots within one second are a second apart.
    when = Repository(dest).snapshots()[-1].taken
    verification = Verification(when, "altered", quick=False)
    save_verification(dest, date if found_in == "the last" else first.name, verification)
    summary = take(account, dest)
    assert account.downloaded == ["B3"]
    require_whole(Path(summary.path))


def test_mail_that_differs_from_the_server_is_named_if_the_source_cannot_compare(
    dest: Path,
) -> None:
    account, report = FakeAccount(letters(20)), RecordingReport()
    date = take(account, dest).date
    when = Repository(dest).snapshots()[-1].taken
    found = Verification(when, "altered", quick=True, online=True)
    save_verification(dest, date, found)
    trio.run(partial(create_snapshot, account, Repository(dest), max_gone=50, report=report))
    [notice] = report.notices
    assert notice.startswith("verify --online has found mail")
    assert "a snapshot of the account" in notice


def test_damage_found_while_a_run_begins_counts(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long listing may take place between the start of a run and the date of its snapshot."""
    account = FakeAccount(letters(20))
    first = Path(take(account, dest).path)
    altered = first / "mail/Inbox/0003.eml"
    altered.chmod(0o600)
    altered.write_bytes(b"x" * altered.stat().st_size)
    next_date = Repository.next_date
    asked = 0

    def found_meanwhile(self: Repository, now: datetime) -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            taken = self.snapshots()[-1].taken
            save_verification(self.path, first.name, Verification(taken, "altered", quick=False))
        return next_date(self, now)

    monkeypatch.setattr(Repository, "next_date", found_meanwhile)
    account.downloaded.clear()
    take(account, dest)
    assert account.downloaded == ["B3"]


def test_the_rest_of_a_killed_prune_is_removed(dest: Path) -> None:
    account = FakeAccount(letters(20))
    first = Path(take(account, dest).path)
    take(account, dest)
    first.rename(dest / f".partial-{first.name}-pruned")
    assert take(account, dest).taken_over == 0


@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "torn journal", "no journal"])
def test_contents_of_an_interrupted_run_are_verified(dest: Path, damage: str) -> None:
    account = FakeAccount(letters(40), unavailable={40})
    refused(account, dest, IncompleteError)
    [partial_] = Repository(dest).unfinished()
    files = sorted((partial_ / "content").iterdir()) + sorted(
        (partial_ / "snapshot" / "mail" / "Inbox").iterdir()
    )
    journal = partial_ / "journal.jsonl"
    files[0].chmod(0o600)
    fetched = {2}
    if damage == "cut":
        os.truncate(files[0], 3)
    elif damage == "altered":
        files[0].write_bytes(b"x" * files[0].stat().st_size)
    elif damage == "missing":
        files[0].unlink()
    elif damage == "torn journal":
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:-2]) + lines[-2][:20] + b"\0\0\n" + lines[-1])
        fetched = {1, 2}
    else:
        journal.unlink()
        fetched = {40}
    account.unavailable.clear()
    summary = take(account, dest)
    assert summary.fetched in fetched
    assert summary.taken_over == 40 - summary.fetched


def test_contents_of_an_interrupted_run_are_read_from_the_disk(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed write the kernel may have pages that the disk does not have."""
    account = FakeAccount(letters(20), unavailable={20})
    refused(account, dest, IncompleteError)
    account.unavailable.clear()
    happened: list[str] = []
    sync, advise = FileSystem.sync, os.posix_fadvise

    def synced(self: Any) -> None:
        happened.append("sync")
        sync(self)

    def advised(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        happened.append("drop")
        advise(descriptor, offset, length, advice)

    monkeypatch.setattr(FileSystem, "sync", synced)
    monkeypatch.setattr(os, "posix_fadvise", advised)
    assert take(account, dest).taken_over == 19
    assert happened == ["sync", *["drop"] * 19, "sync"]


@pytest.mark.parametrize(
    "damage", ["no text", "no checksum", "no size", "leads elsewhere", "long name"]
)
def test_a_damaged_journal_loses_only_its_damaged_lines(dest: Path, damage: str) -> None:
    """Contents on other lines are reused."""
    first = Path(take(FakeAccount(letters(5)), dest).path)
    before = everything_in(first)
    account = FakeAccount(letters(40), unavailable={40})
    refused(account, dest, IncompleteError)
    [partial_] = Repository(dest).unfinished()
    journal = partial_ / "journal.jsonl"
    head, *lines = journal.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        _, size, sha256, file, _ = json.loads(line)
        lines[number] = {
            "no text": line.replace(b"B", b"\xc2"),
            "no checksum": line.replace(sha256.encode(), b"g" * 64),
            "no size": line.replace(b",%d," % size, b",-1,"),
            "leads elsewhere": line.replace(
                file.encode(), f"snapshot/mail/../../../{first.name}/mail/Inbox/0001.eml".encode()
            ),
            "long name": line.replace(file.encode(), b"snapshot/mail/" + b"x" * 300),
        }[damage]
    journal.write_bytes(head + b"".join(lines))
    account.unavailable.clear()
    summary = take(account, dest)
    assert (summary.taken_over, summary.fetched) == (0, 35)
    require_whole(Path(summary.path))
    assert everything_in(first) == before
    assert not Repository(dest).unfinished()


def test_contents_of_several_interrupted_runs_are_reused(dest: Path) -> None:
    account = FakeAccount(letters(40))
    for lost in (set(range(20, 41)), set(range(30, 41)), {40}):
        account.unavailable = lost
        refused(account, dest, IncompleteError)
    account.unavailable.clear()
    account.downloaded.clear()
    assert take(account, dest).taken_over == 39
    assert account.downloaded == ["B40"]


def test_a_file_placed_by_an_interrupted_run_is_reused(dest: Path) -> None:
    """It is in the tree of the abandoned attempt."""
    account = FakeAccount(letters(40))
    account.stays_frozen = False
    refused(account, dest, StorageError)
    [left] = Repository(dest).unfinished()
    assert not list((left / "content").iterdir())
    account.stays_frozen = True
    account.downloaded.clear()
    assert take(account, dest).taken_over == 40
    assert account.downloaded == []


@pytest.mark.parametrize("are_sha1", [True, False])
def test_the_journal_of_another_version_is_read(dest: Path, *, are_sha1: bool) -> None:
    """Its contents are reused if the blob ids contain their SHA-1."""
    account = FakeAccount(letters(2), blob_ids_are_sha1=are_sha1)
    run = dest / ".partial-2026-11-22T010203Z"
    (run / "content").mkdir(parents=True)
    (run / "snapshot" / "mail" / "Inbox").mkdir(parents=True)
    (run / "content" / "1").write_bytes(account.letters[0].bytes)
    (run / "snapshot" / "mail" / "Inbox" / "2.eml").write_bytes(account.letters[1].bytes)
    first, second = (letter.saved().sha256 for letter in account.letters)
    (run / "journal.jsonl").write_text(
        '{"origin":{"server":"https://mail.example/jmap/","accountId":"u1",'
        '"accountName":"alice","username":"alice@mail.example","directory":""}}\n'
        f'["B1",28,"{first}","content/1"]\n'
        f'["B2",28,"{second}","content/2"]\n'
        f'["B2",28,"{second}","snapshot/mail/Inbox/2.eml"]\n'
    )
    assert take(account, dest).taken_over == (2 if are_sha1 else 0)
    assert len(account.downloaded) == (0 if are_sha1 else 2)


# --- File systems


def without_links(monkeypatch: pytest.MonkeyPatch, number: int = errno.EPERM) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.link", refuse)


def test_without_links_files_are_copied_and_verified(
    dest: Path, monkeypatch: pytest.MonkeyPatch, listener: RecordingReport
) -> None:
    without_links(monkeypatch)
    monkeypatch.setattr("fcntl.ioctl", _refuse_clone)
    account = FakeAccount(letters(20))
    first = take(account, dest, listener)
    assert first.links == "copy"
    assert len([notice for notice in listener.notices if "no hard links" in notice]) == 1
    account.downloaded.clear()
    second = take(account, dest)
    assert account.downloaded == []
    one, other = (Path(taken.path, "mail/Inbox/0005.eml") for taken in (first, second))
    assert not one.samefile(other)
    assert one.stat().st_mtime == other.stat().st_mtime
    assert one.read_bytes() == other.read_bytes()
    # A copy reads the file, so a change is noticed.
    one, other = (Path(second.path, "mail", name, "0010.eml") for name in ("Inbox", "Work"))
    for path in (one, other):
        path.chmod(0o600)
        path.write_bytes(b"x" * path.stat().st_size)
    take(account, dest)
    assert account.downloaded == ["B10"]


def test_without_hard_links_blocks_are_shared(
    dest: Path, monkeypatch: pytest.MonkeyPatch, listener: RecordingReport
) -> None:
    without_links(monkeypatch, errno.EOPNOTSUPP)
    cloned = itertools.count()

    def clone(copy: int, request: int, original: int) -> int:
        assert request == 0x40049409
        next(cloned)
        os.sendfile(copy, original, 0, os.fstat(original).st_size)
        return 0

    monkeypatch.setattr("fcntl.ioctl", clone)
    account = FakeAccount(letters(20))
    assert take(account, dest, listener).links == "reflink"
    assert take(account, dest).links == "reflink"
    # First: one test and four mails in two mailboxes. Then: one test and all files.
    assert next(cloned) == 1 + 4 + 1 + 24


def test_a_file_with_too_many_links_is_copied(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is 65,000 on ext4: seven years of hourly snapshots."""
    account = FakeAccount(letters(20))
    first = take(account, dest)
    link = os.link

    def full(source: str, target: str, **options: Any) -> None:
        if "0003.eml" in str(source):
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, target, **options)

    monkeypatch.setattr("os.link", full)
    second = take(account, dest)
    assert second.fetched == 0
    assert second.links == "hard"
    one, other = (Path(taken.path, "mail/Inbox/0003.eml") for taken in (first, second))
    assert not one.samefile(other)
    assert one.read_bytes() == other.read_bytes()


def test_a_failed_sync_is_an_error(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    account = FakeAccount(letters(20))
    with monkeypatch.context() as patched:
        patched.setattr(FileSystem, "sync", fail)
        refused(account, dest, StorageError)
    assert take(account, dest).taken_over == 20


def test_failed_cleaning_up_is_only_a_notice(
    dest: Path, listener: RecordingReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot exists, so the run has succeeded. The next run cleans up."""

    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    account = FakeAccount(letters(20))
    with monkeypatch.context() as patched:
        patched.setattr(Repository, "set_latest", fail)
        summary = trio.run(
            partial(create_snapshot, account, Repository(dest), max_gone=50, report=listener)
        )
    require_whole(Path(summary.path))
    assert listener.path == Path(summary.path)
    [notice] = listener.notices
    assert "cleaning up failed" in notice
    assert not (dest / "latest").exists()
    take(account, dest)


def test_everything_is_synced_before_it_has_a_date(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    sync, rename = FileSystem.sync, Path.rename

    def synced(self: Any) -> None:
        happened.append("sync")
        sync(self)

    def renamed(self: Path, target: Path) -> Path:
        if self.name == "snapshot":
            happened.append("rename")
            require_whole(self)
        return rename(self, target)

    monkeypatch.setattr(FileSystem, "sync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    take(FakeAccount(letters(20)), dest)
    assert happened == ["sync", "rename"]


def _refuse_clone(*_: object) -> int:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
