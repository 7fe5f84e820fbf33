"""Taking a snapshot, whatever the account, the last run and the file system are like."""

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
from jmapfs.locking import ProcessLock
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.files import FileSystem
from jmapfs.snapshot.manifest import Origin, read_description
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from jmapfs.snapshot.verify_record import Verification, save_verification
from tests.cache.small_disk import needs_root, tmpfs
from tests.mounting import command
from tests.snapshot.making import Letter, make_snapshot
from tests.snapshot.snapshots import Listener, dates, everything_in, require_whole
from tests.snapshot.source import MadeUpAccount


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


def letters(count: int, first: int = 1) -> list[Letter]:
    """Return letters; every fifth is in two mailboxes."""
    return [
        Letter(number, ("Inbox", "Work") if number % 5 == 0 else ("Inbox",))
        for number in range(first, first + count)
    ]


def take(
    account: MadeUpAccount, dest: Path, listener: Listener | None = None, max_gone: float = 50
) -> SnapshotSummary:
    summary = trio.run(
        partial(
            create_snapshot,
            account,
            Repository(dest),
            max_gone=max_gone,
            report=listener or Listener(),
        )
    )
    require_whole(Path(summary.path))
    assert not Repository(dest).unfinished()
    assert (dest / "latest").resolve() == Path(summary.path)
    return summary


def refused(
    account: MadeUpAccount, dest: Path, error: type[JmapfsError], max_gone: float = 50
) -> JmapfsError:
    before = dates(dest)
    with pytest.raises(error) as raised:
        take(account, dest, max_gone=max_gone)
    assert dates(dest) == before
    return raised.value


def test_what_is_in_it(dest: Path, listener: Listener) -> None:
    summary = take(MadeUpAccount(letters(40)), dest, listener)
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


def test_an_empty_account(dest: Path) -> None:
    assert take(MadeUpAccount([]), dest).mails == 0
    assert take(MadeUpAccount([]), dest).mails == 0


def test_it_is_as_old_as_the_mail(dest: Path) -> None:
    summary = take(MadeUpAccount(letters(3)), dest)
    times = {path.name: path.stat().st_mtime for path in Path(summary.path).rglob("*.eml")}
    assert times == {f"{number:04}.eml": 1_700_000_000 + 60 * number for number in (1, 2, 3)}


def test_what_stays_is_linked(dest: Path) -> None:
    account = MadeUpAccount(letters(40))
    first = Path(take(account, dest).path)
    account.letters = letters(30, first=11) + letters(5, first=100)
    account.brought.clear()
    summary = take(account, dest)
    assert sorted(account.brought) == [f"B{number}" for number in range(100, 105)]
    assert (summary.new, summary.gone, summary.fetched) == (5, 10, 5)
    assert summary.previous == first.name
    for path in first.rglob("*.eml"):
        later = Path(summary.path) / path.relative_to(first)
        assert not later.exists() or later.samefile(path)


def test_two_emails_of_one_blob_are_one_file(dest: Path) -> None:
    """Also in parts that are far from each other, and where the blob came with neither."""
    twin = Letter(1, ("Work",))
    account = MadeUpAccount([Letter(1), *letters(20, first=2)], part=1)
    account.letters.insert(1, twin)
    summary = take(account, dest)
    assert (summary.mails, summary.fetched) == (22, 21)
    one, other = (Path(summary.path, "mail", name, "0001.eml") for name in ("Inbox", "Work"))
    assert one.samefile(other)
    again = take(account, dest)
    assert again.fetched == 0
    assert Path(again.path, "mail", "Work", "0001.eml").samefile(one)


# --- Mail that cannot be had


def test_mail_that_vanishes_is_not_of_the_next_state(dest: Path) -> None:
    account = MadeUpAccount(letters(40), lost={7, 23})

    def vanish(attempt: int) -> None:
        if attempt == 2:
            account.letters = [one for one in account.letters if one.number not in {7, 23}]

    account.opened = vanish
    summary = take(account, dest)
    assert (summary.mails, summary.attempts, summary.fetched, summary.taken_over) == (38, 2, 38, 0)
    assert len(account.brought) == 38
    assert summary.fetched_bytes == summary.bytes


def test_mail_that_keeps_vanishing(dest: Path) -> None:
    account = MadeUpAccount(letters(40))

    def vanish(attempt: int) -> None:
        account.lost = {100 + attempt}
        account.letters = [*letters(40), Letter(100 + attempt)]

    account.opened = vanish
    assert "a mail cannot be downloaded" in str(refused(account, dest, IncompleteError))
    assert account.attempts == 5
    assert len(account.brought) == 40


def test_mail_that_cannot_be_had_at_all(dest: Path) -> None:
    account = MadeUpAccount(letters(40), lost={7, 23})
    error = refused(account, dest, IncompleteError)
    assert "2 mails cannot be downloaded" in str(error)
    assert account.attempts == 2
    account.lost.clear()
    summary = take(account, dest)
    assert (summary.fetched, summary.taken_over) == (2, 38)


def test_where_very_much_cannot_be_had_the_rest_is_not_tried(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jmapfs.snapshot.create._MAX_FAILED", 20)
    account = MadeUpAccount(letters(400), lost=set(range(100, 500)))
    assert "cannot be downloaded" in str(refused(account, dest, IncompleteError))
    assert len(account.brought) < 120


def test_a_mount_that_was_thawed_meanwhile(dest: Path) -> None:
    account = MadeUpAccount(letters(10), held=False)
    assert "thawed" in str(refused(account, dest, StorageError))
    account.held = True
    assert take(account, dest).fetched == 0


# --- Much that is gone


@pytest.mark.parametrize(("kept", "max_gone", "stopped"), [(5, 50, 0), (4, 50, 1), (9, 0, 1)])
def test_much_that_is_gone_stops_it(dest: Path, kept: int, max_gone: float, stopped: int) -> None:
    account = MadeUpAccount(letters(10))
    take(account, dest)
    account.letters = letters(kept)
    if not stopped:
        assert take(account, dest, max_gone=max_gone).gone == 10 - kept
        return
    error = refused(account, dest, TooMuchGoneError, max_gone)
    assert f"{10 - kept} of the 10 mails" in str(error)
    assert "--max-gone 100" in str(error)
    assert take(account, dest, max_gone=100).gone == 10 - kept


def test_an_account_that_is_empty_now_stops_it(dest: Path) -> None:
    account = MadeUpAccount(letters(10))
    take(account, dest)
    account.letters = []
    refused(account, dest, TooMuchGoneError)


def test_new_mail_does_not_hide_what_is_gone(dest: Path) -> None:
    account = MadeUpAccount(letters(10))
    take(account, dest)
    account.letters = letters(1000, first=100)
    refused(account, dest, TooMuchGoneError)


# --- The destination


def test_the_snapshots_of_another_account(dest: Path) -> None:
    account = MadeUpAccount(letters(10))
    take(account, dest)
    for changed in (
        {"account_id": "u2"},
        {"server": "https://mail.example:8443/jmap/"},
        {"directory": "Work"},
    ):
        members: dict[str, Any] = {
            name: getattr(account.origin, name) for name in Origin.__struct_fields__
        }
        other = MadeUpAccount(letters(10), origin=Origin(**members | changed))
        assert "choose another directory" in str(refused(other, dest, ConfigError))
    # The server may serve its API elsewhere, and call the account by another name.
    origin = Origin("https://mail.example/api/2", "u1", "Alice", "alice")
    take(MadeUpAccount(letters(10), origin=origin), dest)


def test_a_first_run_of_another_account_that_was_interrupted(dest: Path) -> None:
    refused(MadeUpAccount(letters(10), lost={1}), dest, IncompleteError)
    other = MadeUpAccount(letters(10), origin=Origin("https://mail.example/", "u2", "bob", "bob"))
    refused(other, dest, ConfigError)


@pytest.mark.parametrize("name", ["missing/dest", "file", "file/dest"])
def test_a_destination_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        take(MadeUpAccount([]), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_at_a_time(dest: Path) -> None:
    account = MadeUpAccount(letters(5))
    take(account, dest)
    with ProcessLock(Repository(dest).lock_path, "it"):
        refused(account, dest, BusyError)
    take(account, dest)


def test_what_is_not_ours_is_left_alone(dest: Path) -> None:
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
    account = MadeUpAccount(letters(10))
    summary = trio.run(
        partial(create_snapshot, account, Repository(dest), max_gone=50, report=Listener())
    )
    require_whole(Path(summary.path))
    after = everything_in(dest)
    assert {path: after[path] for path in before} == before


def test_a_clock_that_goes_back(dest: Path) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    make_snapshot(dest, tomorrow.strftime("%Y-%m-%dT%H%M%SZ"), letters(10))
    summary = take(MadeUpAccount(letters(12)), dest)
    assert summary.date == (tomorrow + timedelta(seconds=1)).strftime("%Y-%m-%dT%H%M%SZ")
    assert summary.fetched == 2
    assert dates(dest)[-1] == summary.date


def test_two_in_one_second(dest: Path) -> None:
    account = MadeUpAccount(letters(3))
    taken = [take(account, dest).date for _ in range(4)]
    assert taken == sorted(set(taken)) == dates(dest)


@needs_root
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    account = MadeUpAccount([Letter(number, content=os.urandom(30_000)) for number in range(1, 60)])
    with tmpfs(tmp_path / "disk", "1m") as disk:
        dest = disk / "dest"
        error = refused(account, dest, StorageError)
        assert "No space left" in str(error)
        came = len(account.brought)
        command("mount", "-o", "remount,size=4m", disk)
        summary = take(account, dest)
        assert summary.taken_over > 10
        assert summary.fetched + summary.taken_over == 59
        assert came < 59
        earlier = everything_in(Path(summary.path))
        # Full again, in a later run: what is there stays.
        account.letters += [Letter(n, content=os.urandom(30_000)) for n in range(100, 250)]
        refused(account, dest, StorageError)
        assert everything_in(Path(summary.path)) == earlier
        require_whole(Path(summary.path))


# --- What the last run left


def test_the_last_snapshot_is_damaged(dest: Path, listener: Listener) -> None:
    """It is not built upon: the one before it is, or nothing."""
    account = MadeUpAccount(letters(20))
    take(account, dest)
    account.letters = letters(30)
    second = Path(take(account, dest).path)
    manifest = second / "manifest.jsonl"
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes().replace(b'"Inbox"', b'"Inboy"', 1))
    account.brought.clear()
    summary = take(account, dest, listener)
    assert len(account.brought) == 10
    assert any(str(second) in notice for notice in listener.notices)
    assert summary.previous == dates(dest)[0]


def test_a_file_of_the_last_snapshot_is_missing_or_cut(dest: Path) -> None:
    account = MadeUpAccount(letters(20))
    first = Path(take(account, dest).path)
    (first / "mail/Inbox/0003.eml").unlink()
    (first / "mail/Inbox/0004.eml").chmod(0o600)
    os.truncate(first / "mail/Inbox/0004.eml", 3)
    # The one in two mailboxes is still there under its other name.
    (first / "mail/Inbox/0005.eml").unlink()
    account.brought.clear()
    take(account, dest)
    assert sorted(account.brought) == ["B3", "B4"]


@pytest.mark.parametrize("found_in", ["the last", "the one before"])
def test_what_verify_found_is_fetched_anew(dest: Path, found_in: str) -> None:
    """Of the same size, so that only reading tells; a link would hand it on for ever."""
    account = MadeUpAccount(letters(20))
    first = Path(take(account, dest).path)
    altered = first / "mail/Inbox/0003.eml"
    altered.chmod(0o600)
    altered.write_bytes(b"x" * altered.stat().st_size)
    account.brought.clear()
    # Nobody has noticed.
    date = trio.run(
        partial(create_snapshot, account, Repository(dest), max_gone=50, report=Listener())
    ).date
    assert account.brought == []
    # Two of one second are dated a second apart.
    when = Repository(dest).snapshots()[-1].taken
    verification = Verification(when, "altered", quick=False)
    save_verification(dest, date if found_in == "the last" else first.name, verification)
    summary = take(account, dest)
    assert account.brought == ["B3"]
    require_whole(Path(summary.path))


def test_what_verify_finds_while_it_begins(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking what was found and taking its date, for which a long listing may be."""
    account = MadeUpAccount(letters(20))
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
    account.brought.clear()
    take(account, dest)
    assert account.brought == ["B3"]


def test_what_a_killed_prune_left_goes(dest: Path) -> None:
    account = MadeUpAccount(letters(20))
    first = Path(take(account, dest).path)
    take(account, dest)
    first.rename(dest / f".partial-{first.name}-pruned")
    assert take(account, dest).taken_over == 0


@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "torn journal", "no journal"])
def test_what_an_interrupted_run_left_is_checked(dest: Path, damage: str) -> None:
    account = MadeUpAccount(letters(40), lost={40})
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
    account.lost.clear()
    summary = take(account, dest)
    assert summary.fetched in fetched
    assert summary.taken_over == 40 - summary.fetched


def test_what_is_taken_over_is_read_from_the_disk(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed write the kernel may have what the disk has not."""
    account = MadeUpAccount(letters(20), lost={20})
    refused(account, dest, IncompleteError)
    account.lost.clear()
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
def test_a_journal_that_is_damaged(dest: Path, damage: str) -> None:
    """What its lines say of contents is lost, and no more than that."""
    first = Path(take(MadeUpAccount(letters(5)), dest).path)
    before = everything_in(first)
    account = MadeUpAccount(letters(40), lost={40})
    refused(account, dest, IncompleteError)
    [partial_] = Repository(dest).unfinished()
    journal = partial_ / "journal.jsonl"
    head, *lines = journal.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        _, size, sha256, file = json.loads(line)
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
    account.lost.clear()
    summary = take(account, dest)
    assert (summary.taken_over, summary.fetched) == (0, 35)
    require_whole(Path(summary.path))
    assert everything_in(first) == before
    assert not Repository(dest).unfinished()


def test_several_interrupted_runs_are_taken_over(dest: Path) -> None:
    account = MadeUpAccount(letters(40))
    for lost in (set(range(20, 41)), set(range(30, 41)), {40}):
        account.lost = lost
        refused(account, dest, IncompleteError)
    account.lost.clear()
    account.brought.clear()
    assert take(account, dest).taken_over == 39
    assert account.brought == ["B40"]


def test_a_file_that_was_moved_within_a_partial_is_found(dest: Path) -> None:
    """Placed in the tree of an attempt that was given up."""
    account = MadeUpAccount(letters(40))
    account.held = False
    refused(account, dest, StorageError)
    [left] = Repository(dest).unfinished()
    assert not list((left / "content").iterdir())
    account.held = True
    account.brought.clear()
    assert take(account, dest).taken_over == 40
    assert account.brought == []


# --- File systems


def without_links(monkeypatch: pytest.MonkeyPatch, number: int = errno.EPERM) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.link", refuse)


def test_a_file_system_without_links(
    dest: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    without_links(monkeypatch)
    monkeypatch.setattr("fcntl.ioctl", _refuse_clone)
    account = MadeUpAccount(letters(20))
    first = take(account, dest, listener)
    assert first.links == "copy"
    assert len([notice for notice in listener.notices if "no hard links" in notice]) == 1
    account.brought.clear()
    second = take(account, dest)
    assert account.brought == []
    one, other = (Path(taken.path, "mail/Inbox/0005.eml") for taken in (first, second))
    assert not one.samefile(other)
    assert one.stat().st_mtime == other.stat().st_mtime
    assert one.read_bytes() == other.read_bytes()
    # What would be copied is read, and so it is seen that it has changed.
    one, other = (Path(second.path, "mail", name, "0010.eml") for name in ("Inbox", "Work"))
    for path in (one, other):
        path.chmod(0o600)
        path.write_bytes(b"x" * path.stat().st_size)
    take(account, dest)
    assert account.brought == ["B10"]


def test_a_file_system_that_shares_blocks(
    dest: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    without_links(monkeypatch, errno.EOPNOTSUPP)
    cloned = itertools.count()

    def clone(copy: int, request: int, original: int) -> int:
        assert request == 0x40049409
        next(cloned)
        os.sendfile(copy, original, 0, os.fstat(original).st_size)
        return 0

    monkeypatch.setattr("fcntl.ioctl", clone)
    account = MadeUpAccount(letters(20))
    assert take(account, dest, listener).links == "reflink"
    assert take(account, dest).links == "reflink"
    # Once to find out, for four in two mailboxes; then for all files.
    assert next(cloned) == 1 + 4 + 1 + 24


def test_a_file_that_has_all_the_names_it_can_have(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """65,000 on ext4: some years of hours."""
    account = MadeUpAccount(letters(20))
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


def test_what_cannot_be_brought_to_the_disk(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    account = MadeUpAccount(letters(20))
    with monkeypatch.context() as patched:
        patched.setattr(FileSystem, "sync", fail)
        refused(account, dest, StorageError)
    assert take(account, dest).taken_over == 20


def test_what_cannot_be_tidied_up(
    dest: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, so that is no failure; the next run does it."""

    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    account = MadeUpAccount(letters(20))
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


def test_everything_is_on_the_disk_before_it_has_a_date(
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
    take(MadeUpAccount(letters(20)), dest)
    assert happened == ["sync", "rename"]


def _refuse_clone(*_: object) -> int:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
