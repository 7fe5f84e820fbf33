"""Pruning: what is removed, what stays unchanged, and kills at any time."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from jmapfs.cli.snapshots_command import prune_command
from jmapfs.errors import AlteredFilesError, BusyError, JmapfsError, StorageError, UsageError
from jmapfs.snapshot.manifest import CHECKSUMS, DESCRIPTION, MANIFEST, Origin
from jmapfs.snapshot.prune import (
    FEWEST_LACKING,
    LAST_GOOD,
    PruneResult,
    RetentionPolicy,
    prune,
)
from jmapfs.snapshot.repository import LATEST, Repository
from jmapfs.snapshot.staging import InterruptedRuns
from jmapfs.snapshot.verify_record import Verification, save_verification
from tests.namespaces import new_namespace
from tests.snapshot.handmade import ORIGIN, Letter, make_snapshot
from tests.waits import wait_until

DATES = [f"2026-11-{day:02}T120000Z" for day in range(1, 6)]
NEWEST = DATES[-1]


def history(destination: Path, *, mails: int = 4) -> list[Path]:
    """Make five daily snapshots; each has one new letter, and lacks the oldest one."""
    snapshots: list[Path] = []
    for day, date in enumerate(DATES):
        letters = [Letter(number, ("Inbox", "Work")) for number in range(day, day + mails)]
        previous = snapshots[-1] if snapshots else None
        snapshots.append(make_snapshot(destination, date, letters, previous=previous))
    return snapshots


def pruned(destination: Path, policy: RetentionPolicy) -> PruneResult:
    return prune(Repository(destination), policy, lambda _date: None)


def dates_in(destination: Path) -> list[str]:
    return [snapshot.date for snapshot in Repository(destination).snapshots()]


def everything(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """Return everything at a path: inode, mode, size and mtime by name."""
    paths = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    found = {}
    for one in paths:
        status = one.lstat()
        found[str(one)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def assert_good(snapshot: Path) -> None:
    subprocess.run(["sha256sum", "-c", "--quiet", "--strict", CHECKSUMS], cwd=snapshot, check=True)


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(prune_command, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit | JmapfsError):
        raise result.exception
    return result


# --- Removed and kept snapshots


def test_snapshots_that_no_rule_keeps_are_removed(tmp_path: Path) -> None:
    snapshots = history(tmp_path)
    kept = {one: everything(one) for one in snapshots[3:]}
    result = pruned(tmp_path, RetentionPolicy(last=2))
    assert dates_in(tmp_path) == DATES[3:]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".jmapfs", *DATES[3:]]
    assert [verdict.date for verdict in result.plan.removed] == DATES[:3]
    assert {one: everything(one) for one in snapshots[3:]} == kept


def test_shared_files_stay_whole(tmp_path: Path) -> None:
    snapshots = history(tmp_path)
    mail = snapshots[4] / "mail/Inbox/0004.eml"
    assert mail.stat().st_nlink == 8
    content = mail.read_bytes()
    pruned(tmp_path, RetentionPolicy(last=2))
    assert mail.stat().st_nlink == 4
    assert mail.read_bytes() == content
    for snapshot in snapshots[3:]:
        assert_good(snapshot)


def test_freed_bytes_are_those_of_no_other_snapshot(tmp_path: Path) -> None:
    snapshots = history(tmp_path)
    total: dict[int, int] = {}
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.parent.name != ".jmapfs":
            total[path.stat().st_ino] = path.stat().st_size
    result = pruned(tmp_path, RetentionPolicy(last=1))
    left = {path.stat().st_ino for path in snapshots[4].rglob("*") if path.is_file()}
    assert result.freed_bytes == sum(size for inode, size in total.items() if inode not in left)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    history(tmp_path)
    pruned(tmp_path, RetentionPolicy(daily=2, yearly=1))
    before = everything(tmp_path)
    result = pruned(tmp_path, RetentionPolicy(daily=2, yearly=1))
    assert not result.plan.removed
    assert {name: one for name, one in everything(tmp_path).items() if "lock" not in name} == {
        name: one for name, one in before.items() if "lock" not in name
    }


def test_a_snapshot_with_damaged_mail_can_be_removed(tmp_path: Path) -> None:
    snapshots = history(tmp_path)
    (snapshots[0] / "mail/Inbox/0000.eml").unlink()
    (snapshots[0] / MANIFEST).unlink()
    pruned(tmp_path, RetentionPolicy(last=4))
    assert dates_in(tmp_path) == DATES[1:]


# --- Foreign files


def test_foreign_files_are_not_touched(tmp_path: Path) -> None:
    destination = tmp_path / "backup"
    destination.mkdir()
    history(destination)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "letter").write_text("text")
    (outside / ".partial-2026-11-01T120000Z-pruned").mkdir()
    foreign = {
        "2026-10-01T120000Z": "a directory with a date",
        "2026-10-32T120000Z": "no date",
        "notes": "a directory",
        ".partial-foo": "a directory",
        ".partial-2026-10-01": "a directory",
    }
    for name, what in foreign.items():
        (destination / name).mkdir()
        (destination / name / what).write_text(what)
    (destination / "2026-10-02T120000Z").write_text("a file with a date")
    (destination / ".partial-2026-10-03T120000Z-pruned").write_text("a file")
    (destination / "2026-10-04T120000Z").symlink_to(outside)
    (destination / ".partial-2026-10-05T120000Z-pruned").symlink_to(outside)
    (destination / "nowhere").symlink_to("nothing")
    before = {one: everything(one) for one in destination.iterdir() if one.name not in DATES}
    before[outside] = everything(outside)
    pruned(destination, RetentionPolicy(last=1))
    assert dates_in(destination) == [NEWEST]
    assert {one: everything(one) for one in before} == before


def test_snapshots_of_another_account_are_left_alone(tmp_path: Path) -> None:
    other = Origin(ORIGIN.server, "u2", "bob", "bob@mail.example")
    strange = Origin("http://[zz]", "u1", "alice", "alice@mail.example")
    foreign = make_snapshot(tmp_path, "2025-01-01T000000Z", [Letter(1)], origin=other)
    odd = make_snapshot(tmp_path, "2025-01-02T000000Z", [Letter(1)], origin=strange)
    same = Origin("https://mail.example:443/jmap", "u1", "renamed", ORIGIN.username)
    make_snapshot(tmp_path, "2025-01-03T000000Z", [Letter(1)], origin=same)
    history(tmp_path)
    before = everything(foreign), everything(odd)
    result = pruned(tmp_path, RetentionPolicy(last=1))
    assert dates_in(tmp_path) == [foreign.name, odd.name, NEWEST]
    assert (everything(foreign), everything(odd)) == before
    assert [one.date for one in result.plan.left_alone] == [foreign.name, odd.name]


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"format": 99}'])
def test_a_snapshot_without_a_valid_description_is_left_alone(
    tmp_path: Path, content: bytes | None
) -> None:
    snapshots = history(tmp_path)
    description = snapshots[1] / DESCRIPTION
    description.unlink()
    if content is not None:
        description.write_bytes(content)
    before = everything(snapshots[1])
    result = pruned(tmp_path, RetentionPolicy(last=1))
    assert dates_in(tmp_path) == [DATES[1], NEWEST]
    assert everything(snapshots[1]) == before
    assert [one.date for one in result.plan.left_alone] == [DATES[1]]


def test_a_copy_with_another_date_is_left_alone(tmp_path: Path) -> None:
    snapshots = history(tmp_path)
    copy = tmp_path / "2026-11-01T130000Z"
    shutil.copytree(snapshots[0], copy)
    result = pruned(tmp_path, RetentionPolicy(last=1))
    assert dates_in(tmp_path) == [copy.name, NEWEST]
    assert DATES[0] in result.plan.left_alone[0].reason


def test_a_symbolic_link_in_a_snapshot_is_not_followed(tmp_path: Path) -> None:
    destination, outside = tmp_path / "backup", tmp_path / "outside"
    snapshots = history(destination)
    outside.mkdir()
    (outside / "letter").write_text("text")
    for name in ("mail/link", "mail/Inbox/link"):
        (snapshots[0] / name).symlink_to(outside)
    (snapshots[0] / "mail/letter").symlink_to(outside / "letter")
    # A snapshot with anything else in it is left alone, so this is one that was half removed.
    snapshots[0].rename(destination / f".partial-{DATES[0]}-pruned")
    pruned(destination, RetentionPolicy(last=1))
    assert dates_in(destination) == [NEWEST]
    assert (outside / "letter").read_text() == "text"


def test_nothing_is_written_to_a_directory_without_snapshots(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("text")
    before = everything(tmp_path)
    assert pruned(tmp_path, RetentionPolicy(last=1)).plan.snapshots == ()
    assert everything(tmp_path) == before
    with pytest.raises(UsageError):
        pruned(tmp_path / "missing", RetentionPolicy(last=1))
    assert everything(tmp_path) == before


# --- The newest good snapshot


def altered(path: Path) -> None:
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content[:-5] + b"?" + content[-4:])


@pytest.mark.parametrize("file", [MANIFEST, CHECKSUMS])
def test_the_newest_good_snapshot_is_kept(tmp_path: Path, file: str) -> None:
    snapshots = history(tmp_path)
    altered(snapshots[4] / file)
    altered(snapshots[3] / file)
    result = pruned(tmp_path, RetentionPolicy(last=1))
    assert dates_in(tmp_path) == [DATES[2], NEWEST]
    assert [verdict.reasons for verdict in result.plan.snapshots if verdict.kept] == [
        (LAST_GOOD,),
        ("last",),
    ]


def test_a_snapshot_that_verify_found_damaged_is_not_good(tmp_path: Path) -> None:
    history(tmp_path)
    found_damaged(tmp_path, DATES[4])
    found_damaged(tmp_path, DATES[3])
    result = pruned(tmp_path, RetentionPolicy(last=2))
    # Two of all snapshots, and two of those without known damage.
    assert dates_in(tmp_path) == DATES[1:]
    assert [verdict.damaged for verdict in result.plan.snapshots] == [False] * 3 + [True] * 2
    assert result.plan.snapshots[2].reasons == ("last", LAST_GOOD)


def test_all_rules_that_keep_a_snapshot_are_named(tmp_path: Path) -> None:
    make_snapshot(tmp_path, "2026-11-01T110000Z", [Letter(1)])
    for date in ("2026-11-01T120000Z", "2026-11-01T130000Z"):
        make_snapshot(tmp_path, date, [Letter(1)])
    found_damaged(tmp_path, "2026-11-01T130000Z")
    result = pruned(tmp_path, RetentionPolicy(last=2, daily=1))
    assert [(verdict.date, verdict.reasons) for verdict in result.plan.snapshots] == [
        ("2026-11-01T110000Z", ("last",)),
        ("2026-11-01T120000Z", ("last", "daily", LAST_GOOD)),
        ("2026-11-01T130000Z", ("last", "daily")),
    ]


def test_nothing_is_removed_if_verify_found_all_damaged(tmp_path: Path) -> None:
    history(tmp_path)
    for date in DATES:
        found_damaged(tmp_path, date)
    with pytest.raises(AlteredFilesError):
        pruned(tmp_path, RetentionPolicy(last=1))
    assert dates_in(tmp_path) == DATES


def test_a_damaged_snapshot_does_not_replace_a_good_one(tmp_path: Path) -> None:
    for hour in (8, 12, 16):
        make_snapshot(tmp_path, f"2026-11-01T{hour:02}0000Z", [Letter(1)])
    make_snapshot(tmp_path, NEWEST, [Letter(1)])
    found_damaged(tmp_path, "2026-11-01T160000Z")
    pruned(tmp_path, RetentionPolicy(daily=2))
    assert dates_in(tmp_path) == ["2026-11-01T120000Z", "2026-11-01T160000Z", NEWEST]


def found_damaged(destination: Path, date: str) -> None:
    verification = Verification(datetime.now(UTC), "altered", quick=False)
    save_verification(destination, date, verification)


@pytest.mark.parametrize(
    ("lacking", "best"),
    [
        # For each day: missing mails, and mails that were counted, but not listed.
        ([(1, 0), (1, 0), (1, 0), (1, 0), (1, 0)], 4),
        ([(0, 2), (0, 2), (0, 2), (0, 2), (0, 700)], 3),
        ([(0, 3), (1, 1), (2, 0), (1, 2), (9, 0)], 2),
        ([(5, 0), (0, 0), (1, 0), (0, 1), (1, 1)], 1),
    ],
)
@pytest.mark.parametrize("how", ["rule", "damage"])
def test_the_snapshot_that_lacks_the_fewest_is_kept_if_none_is_complete(
    tmp_path: Path, lacking: list[tuple[int, int]], best: int, how: str
) -> None:
    for date, (missing, not_listed) in zip(DATES, lacking, strict=True):
        make_snapshot(tmp_path, date, [Letter(1)], missing=missing, not_listed=not_listed)
    reason = LAST_GOOD if lacking[best] == (0, 0) else FEWEST_LACKING
    if how == "damage":
        # A better snapshot that is damaged is not kept.
        make_snapshot(tmp_path, "2026-11-04T130000Z", [Letter(1)])
        altered(tmp_path / "2026-11-04T130000Z" / MANIFEST)
    plan = pruned(tmp_path, RetentionPolicy(last=1)).plan
    reasons = {verdict.date: verdict.reasons for verdict in plan.snapshots if verdict.kept}
    assert set(reasons) == {DATES[best], NEWEST} | (
        {"2026-11-04T130000Z"} if how == "damage" else set()
    )
    assert reason in reasons[DATES[best]]
    assert "last" in reasons[NEWEST]


def test_nothing_is_removed_if_none_is_good(tmp_path: Path) -> None:
    for snapshot in history(tmp_path):
        altered(snapshot / MANIFEST)
    with pytest.raises(AlteredFilesError):
        pruned(tmp_path, RetentionPolicy(last=1))
    assert dates_in(tmp_path) == DATES
    assert run(tmp_path, "--keep-last", "1", "--dry-run").exception is not None


def test_nothing_is_removed_if_none_can_be_read(tmp_path: Path) -> None:
    for snapshot in history(tmp_path):
        (snapshot / DESCRIPTION).unlink()
    with pytest.raises(AlteredFilesError):
        pruned(tmp_path, RetentionPolicy(last=1))
    assert dates_in(tmp_path) == DATES


# --- latest


def test_latest_stays_if_its_snapshot_stays(tmp_path: Path) -> None:
    history(tmp_path)
    Repository(tmp_path).create()
    Repository(tmp_path).set_latest(NEWEST)
    assert Repository(tmp_path).latest_date() == NEWEST
    before = everything(tmp_path / LATEST)
    pruned(tmp_path, RetentionPolicy(last=1))
    assert everything(tmp_path / LATEST) == before
    assert (tmp_path / LATEST / DESCRIPTION).is_file()


@pytest.mark.parametrize("date", [DATES[0], "2026-10-01T000000Z"])
def test_latest_points_to_an_existing_snapshot_afterwards(tmp_path: Path, date: str) -> None:
    history(tmp_path)
    (tmp_path / LATEST).symlink_to(date)
    pruned(tmp_path, RetentionPolicy(last=2))
    assert Repository(tmp_path).latest_date() == NEWEST


def test_latest_stays_if_there_are_no_snapshots(tmp_path: Path) -> None:
    (tmp_path / f".partial-{DATES[0]}-pruned").mkdir()
    (tmp_path / LATEST).symlink_to(DATES[0])
    assert pruned(tmp_path, RetentionPolicy(last=1)).plan.snapshots == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".jmapfs", LATEST]


@pytest.mark.parametrize("target", ["nothing", f"elsewhere/{DATES[0]}", f"{DATES[0]}/mail"])
def test_latest_that_points_elsewhere_is_not_touched(tmp_path: Path, target: str) -> None:
    history(tmp_path)
    (tmp_path / LATEST).symlink_to(target)
    before = everything(tmp_path / LATEST)
    pruned(tmp_path, RetentionPolicy(last=1))
    assert everything(tmp_path / LATEST) == before


def test_a_file_of_the_user_named_latest_is_not_touched(tmp_path: Path) -> None:
    history(tmp_path)
    (tmp_path / LATEST).mkdir()
    Repository(tmp_path).create()
    Repository(tmp_path).set_latest(NEWEST)
    assert Repository(tmp_path).latest_date() is None
    pruned(tmp_path, RetentionPolicy(last=1))
    assert list((tmp_path / LATEST).iterdir()) == []


def test_latest_is_replaced_in_one_step(tmp_path: Path) -> None:
    destination = Repository(tmp_path)
    destination.create()
    destination.set_latest(DATES[0])
    # A run that was killed before it renamed the link leaves this.
    (destination.state_directory / LATEST).symlink_to(DATES[1])
    destination.set_latest(DATES[2])
    assert destination.latest_date() == DATES[2]
    assert list(destination.state_directory.iterdir()) == []


def test_without_symbolic_links_there_is_no_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    destination = Repository(tmp_path)
    destination.create()
    monkeypatch.setattr(os, "symlink", refuse)
    destination.set_latest(NEWEST)
    assert destination.latest_date() is None


# --- Deletion


def test_only_partial_directories_are_deleted(tmp_path: Path) -> None:
    for name in (NEWEST, ".partial-foo", f"x.partial-{NEWEST}", LATEST):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match="not for jmapfs"):
            Repository(tmp_path).remove_partial(tmp_path / name)
        assert (tmp_path / name).is_dir()
    assert Repository(tmp_path).remove_partial(tmp_path / f".partial-{NEWEST}") == 0


def test_read_only_directories_are_removed(tmp_path: Path) -> None:
    history(tmp_path)
    for path in tmp_path.glob("*/**/*"):
        if path.is_dir():
            path.chmod(0o500)
    program = (
        "import sys; from pathlib import Path; from tests.snapshot.test_prune import *;"
        "pruned(Path(sys.argv[1]), RetentionPolicy(last=1))"
    )
    # Without these capabilities, modes apply to root as well.
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [
        *(without if os.geteuid() == 0 else []),
        sys.executable,
        "-c",
        program,
        str(tmp_path),
    ]
    subprocess.run(command, check=True)
    assert dates_in(tmp_path) == [NEWEST]
    assert Repository(tmp_path).half_removed() == []


def test_directories_deeper_than_the_limit_of_open_files_are_removed(tmp_path: Path) -> None:
    partial = tmp_path / f".partial-{NEWEST}"
    partial.mkdir()
    at = os.open(partial, os.O_RDONLY)
    for _ in range(1050):
        os.mkdir("d", dir_fd=at)
        os.close(os.open("mail", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        deeper = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    os.close(at)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        Repository(tmp_path).remove_partial(partial)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_the_rename_is_synced_before_mail_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(tmp_path)
    done = []
    fsync, unlink = os.fsync, os.unlink

    def syncing(descriptor: int) -> None:
        done.append((Path(f"/proc/self/fd/{descriptor}").readlink(), dates_in(tmp_path)))
        fsync(descriptor)

    def unlinking(name: str, *, dir_fd: int) -> None:
        done.append((Path(f"/proc/self/fd/{dir_fd}").readlink(), dates_in(tmp_path)))
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "unlink", unlinking)
    pruned(tmp_path, RetentionPolicy(last=3))
    gone = [tmp_path / f".partial-{date}-pruned" for date in DATES[:2]]
    assert done[:2] == [(tmp_path, DATES[1:]), (gone[0], DATES[1:])]
    second = done.index((tmp_path, DATES[2:]))
    assert all(path.is_relative_to(gone[0]) for path, _ in done[1:second])
    assert all(path.is_relative_to(gone[1]) for path, _ in done[second + 1 :])


def test_a_snapshot_that_cannot_be_removed_has_no_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, "unlink", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            pruned(tmp_path, RetentionPolicy(last=3))
    assert dates_in(tmp_path) == DATES[1:]
    assert [path.name for path in Repository(tmp_path).half_removed()] == [
        f".partial-{DATES[0]}-pruned"
    ]
    pruned(tmp_path, RetentionPolicy(last=3))
    assert dates_in(tmp_path) == DATES[2:]
    assert Repository(tmp_path).half_removed() == []


MOUNTED = """
import sys
from pathlib import Path
from jmapfs.errors import StorageError
from jmapfs.snapshot.repository import Repository
partial = Path(sys.argv[1])
letter = partial / "mail/disk/letter"
letter.write_text("text")
try:
    Repository(partial.parent).remove_partial(partial)
except StorageError as error:
    print(error, "-", letter.read_text())
"""


def test_another_file_system_is_not_entered(tmp_path: Path) -> None:
    partial = tmp_path / f".partial-{NEWEST}"
    (partial / "mail/disk").mkdir(parents=True)
    alone = new_namespace(keep=tmp_path)
    mount = ["mount", "-t", "tmpfs", "none", str(partial / "mail/disk")]
    if subprocess.run([*alone, *mount], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs to mount something")
    both = ["sh", "-ec", '"$@"; exec "$python" -c "$program" "$partial"', "sh", *mount]
    names = {"python": sys.executable, "program": MOUNTED, "partial": str(partial)}
    shown = subprocess.run(
        [*alone, *both], env=os.environ | names, capture_output=True, text=True, check=True
    ).stdout
    assert shown == f"{partial} cannot be removed: disk in it is another file system - text\n"


def test_nothing_is_deleted_in_a_directory_that_is_moved_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, outside = tmp_path / f".partial-{NEWEST}", tmp_path / "outside"
    (partial / "mail/Inbox").mkdir(parents=True)
    (partial / "mail/Inbox/letter").write_text("text")
    outside.mkdir()
    unlink = os.unlink

    def moving(name: str, *, dir_fd: int) -> None:
        (partial / "mail/Inbox").rename(outside / "Inbox")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", moving)
    with pytest.raises(StorageError, match="moved meanwhile"):
        Repository(tmp_path).remove_partial(partial)
    assert (outside / "Inbox").is_dir()


SLOWLY = """
import os, sys, time
from pathlib import Path
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.prune import RetentionPolicy
from jmapfs.snapshot.prune import prune
unlink = os.unlink
def slowly(*arguments, **options):
    time.sleep(float(sys.argv[2]))
    unlink(*arguments, **options)
os.unlink = slowly
print("ready", flush=True)
prune(Repository(Path(sys.argv[1])), RetentionPolicy(last=2), lambda date: None)
"""


@contextlib.contextmanager
def slow_prune(destination: Path, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Run prune in another process that pauses before each deletion; kill it at the end."""
    command = [sys.executable, "-c", SLOWLY, str(destination), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_the_snapshot_command_finds_a_killed_prune(tmp_path: Path) -> None:
    snapshots = history(tmp_path)
    path = tmp_path / f".partial-{DATES[0]}-pruned"
    snapshots[0].rename(path)
    assert InterruptedRuns(Repository(tmp_path)).paths == [path]


def test_a_second_prune_at_the_same_time_is_refused(tmp_path: Path) -> None:
    history(tmp_path, mails=100)
    with slow_prune(tmp_path, 0.1) as process:
        wait_until(lambda: bool(Repository(tmp_path).half_removed()))
        command = [sys.executable, "-m", "jmapfs", "prune", str(tmp_path), "--keep-last", "1"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stdout) == (BusyError.exit_code, "")
        assert result.stderr == (
            f"jmapfs: process {process.pid} is using the snapshots in {tmp_path}\n"
        )
        # A dry run needs no lock.
        assert run(tmp_path, "--keep-last", "1", "--dry-run").exit_code == 0
        assert process.poll() is None
    assert dates_in(tmp_path)[-2:] == DATES[-2:]


# --- The command


def test_the_table_names_decisions_and_reasons(tmp_path: Path) -> None:
    history(tmp_path)
    result = run(tmp_path, "--keep-last", "1", "--keep-daily=2", "--keep-weekly", "3")
    assert result.exit_code == 0
    *rows, summary = result.stdout.splitlines()
    assert rows == [
        "2026-11-01T120000Z  keep    weekly",
        "2026-11-02T120000Z  remove",
        "2026-11-03T120000Z  remove",
        "2026-11-04T120000Z  keep    daily",
        "2026-11-05T120000Z  keep    last, daily, weekly, last good one",
    ]
    assert summary.startswith("3 kept, 2 removed (")
    assert result.stderr == ""


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    history(tmp_path)
    (tmp_path / f".partial-{DATES[0]}-pruned").mkdir()
    before = everything(tmp_path)
    result = run(tmp_path, "--keep-last", "1", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "1 kept, 4 would be removed"
    assert everything(tmp_path) == before


def test_json(tmp_path: Path) -> None:
    snapshots = history(tmp_path)
    (snapshots[0] / DESCRIPTION).unlink()
    document: dict[str, Any] = json.loads(run(tmp_path, "--keep-last", "1", "--json").stdout)
    assert document["dry_run"] is False
    assert document["freed_bytes"] > 0
    assert [one["date"] for one in document["left_alone"]] == DATES[:1]
    good = {"damaged": False, "incomplete": False}
    assert document["snapshots"][-2:] == [
        {"date": DATES[3], "kept": False, "reasons": [], **good},
        {"date": NEWEST, "kept": True, "reasons": ["last", LAST_GOOD], **good},
    ]


def test_json_of_a_dry_run(tmp_path: Path) -> None:
    history(tmp_path)
    result = run(tmp_path, "--keep-last", "1", "--json", "-n")
    document: dict[str, Any] = json.loads(result.stdout)
    assert (document["dry_run"], document["freed_bytes"]) == (True, None)
    assert [one["kept"] for one in document["snapshots"]] == [False] * 4 + [True]
    assert dates_in(tmp_path) == DATES


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    snapshots = history(tmp_path)
    (snapshots[0] / DESCRIPTION).unlink()
    result = run(tmp_path, "--keep-last", "1", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert dates_in(tmp_path) == [DATES[0], NEWEST]


def test_directories_left_alone_are_named(tmp_path: Path) -> None:
    snapshots = history(tmp_path)
    (snapshots[0] / DESCRIPTION).write_text('{"format": "\x1b[31m"}')
    result = run(tmp_path, "--keep-last", "1")
    assert f"jmapfs: {DATES[0]} is left alone: " in result.stderr
    assert "\x1b" not in result.output


def test_no_snapshots(tmp_path: Path) -> None:
    result = run(tmp_path, "--keep-last", "1")
    assert result.exit_code == 0
    assert "there are no snapshots" in result.stdout


def test_without_a_rule_nothing_is_removed(tmp_path: Path) -> None:
    history(tmp_path)
    for arguments in ([], ["--dry-run"]):
        assert isinstance(run(tmp_path, *arguments).exception, UsageError)
    assert dates_in(tmp_path) == DATES


@pytest.mark.parametrize("count", ["0", "00", "-1", "", "1.5", "all", "²", "+1"])
def test_invalid_numbers_are_usage_errors(tmp_path: Path, count: str) -> None:
    history(tmp_path)
    assert run(tmp_path, "--keep-last", count).exit_code == UsageError.exit_code
    assert dates_in(tmp_path) == DATES


@pytest.mark.parametrize("count", ["unlimited", "5", "9" * 5000])
def test_large_numbers_keep_everything(tmp_path: Path, count: str) -> None:
    history(tmp_path)
    assert run(tmp_path, "--keep-last", count).exit_code == 0
    assert dates_in(tmp_path) == DATES
