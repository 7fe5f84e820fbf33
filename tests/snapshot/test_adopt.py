"""Snapshot directories whose account moves, and directories that another account takes over."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from jmapfs.errors import ConfigError
from jmapfs.jmap.identity import normalize_location
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.manifest import Origin, read_description
from jmapfs.snapshot.prune import RetentionPolicy, plan_pruning
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from tests.snapshot.commands import RecordingReport
from tests.snapshot.fake_source import FakeAccount
from tests.snapshot.handmade import ORIGIN, Letter

LETTERS = [Letter(number) for number in range(12)]
LOCATION = normalize_location("mail.example")
MOVED = msgspec.structs.replace(ORIGIN, server="https://api.example:8443/jmap/", location=LOCATION)
OTHERS = {
    "account": msgspec.structs.replace(MOVED, account_id="u2"),
    "user": msgspec.structs.replace(MOVED, username="bob@mail.example"),
    "server": msgspec.structs.replace(
        MOVED, location=normalize_location("elsewhere.example"), server="https://elsewhere.example"
    ),
    "directory": msgspec.structs.replace(MOVED, directory="Work"),
}


def take(
    account: FakeAccount, dest: Path, *, adopt: bool = False, report: RecordingReport | None = None
) -> SnapshotSummary:
    create = partial(
        create_snapshot,
        account,
        Repository(dest),
        max_gone=0,
        report=report or RecordingReport(),
        adopt=adopt,
    )
    return trio.run(create)


def account(origin: Origin, epoch: str = "e1", *, sha1: bool = False) -> FakeAccount:
    return FakeAccount(LETTERS, origin=origin, epoch=epoch, blob_ids_are_sha1=sha1)


@pytest.mark.parametrize(
    "before",
    [
        # An earlier version stored only the URL of the API. It was on the host that the user named.
        ORIGIN,
        # The API moves a second time.
        msgspec.structs.replace(MOVED, server="https://old.example/"),
        # The user names the host, and named an address before.
        msgspec.structs.replace(MOVED, location="alice@mail.example"),
    ],
)
def test_a_moved_api_is_the_same_account(tmp_path: Path, before: Origin) -> None:
    dest = tmp_path / "dest"
    take(account(before), dest)
    now = msgspec.structs.replace(
        MOVED, username=MOVED.username.upper(), origins=("https://mail.example:443",)
    )
    summary = take(account(now), dest)
    assert (summary.fetched, summary.new, summary.gone) == (0, 0, 0)
    assert read_description(Path(summary.path)).adopted is None
    plan = plan_pruning(Repository(dest), RetentionPolicy(last=1))
    assert ([len(plan.snapshots), len(plan.left_alone)]) == [2, 0]


@pytest.mark.parametrize("other", OTHERS)
def test_another_account_takes_a_directory_over_only_with_adopt(tmp_path: Path, other: str) -> None:
    dest = tmp_path / "dest"
    first = take(account(MOVED), dest)
    with pytest.raises(ConfigError, match="continue this one with --adopt"):
        take(account(OTHERS[other], "e2"), dest)
    report = RecordingReport()
    adopted = take(account(OTHERS[other], "e2"), dest, adopt=True, report=report)
    # A blob id may stand for other mail there.
    assert (adopted.fetched, adopted.gone, adopted.previous) == (len(LETTERS), 0, None)
    assert read_description(Path(adopted.path)).adopted == MOVED
    assert any("continues with" in notice for notice in report.notices)
    assert Path(first.path).is_dir()
    # The directory belongs to the other account now.
    assert take(account(OTHERS[other], "e2"), dest).fetched == 0
    with pytest.raises(ConfigError, match="has snapshots of"):
        take(account(MOVED), dest)
    plan = plan_pruning(Repository(dest), RetentionPolicy(last=1))
    assert ([one.kept for one in plan.snapshots], plan.left_alone) == ([False, False, True], ())


def test_blob_ids_with_a_checksum_are_shared_with_another_account(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    first = take(account(MOVED, "", sha1=True), dest)
    adopted = take(account(OTHERS["account"], "", sha1=True), dest, adopt=True)
    assert (adopted.fetched, adopted.previous) == (0, first.date)
    fewer = FakeAccount([], origin=MOVED, epoch="", blob_ids_are_sha1=True)
    assert take(fewer, dest, adopt=True).mails == 0


def test_adopt_changes_nothing_for_the_same_account(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    take(account(MOVED), dest)
    report = RecordingReport()
    again = take(account(MOVED), dest, adopt=True, report=report)
    assert (again.fetched, report.notices) == (0, [])
    assert read_description(Path(again.path)).adopted is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mail.example", "https://MAIL.example/"),
        ("mail.example:443", "https://mail.example/.well-known/jmap"),
        ("Alice@Mail.example", "alice@mail.example "),
        ("https://mail.example:443/session?x=1", "https://mail.example/session?x=1"),
    ],
)
def test_a_location_has_one_form(one: str, other: str) -> None:
    assert normalize_location(one) == normalize_location(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mail.example", "mail.example:8443"),
        ("mail.example", "https://mail.example/session"),
        ("https://mail.example/A", "https://mail.example/a"),
        ("http://localhost", "https://localhost"),
    ],
)
def test_other_locations_stay_different(one: str, other: str) -> None:
    assert normalize_location(one) != normalize_location(other)
