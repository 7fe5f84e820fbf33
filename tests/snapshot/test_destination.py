"""Which directories become repositories, which account they belong to, and which are refused."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from click.testing import CliRunner

from jmapfs.cli.main import cli
from jmapfs.errors import ConfigError, JmapfsError, StorageError, UsageError
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.known import is_known, remember
from jmapfs.snapshot.owner import read_owner
from jmapfs.snapshot.prune import RetentionPolicy, prune
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from tests.mounts import Home
from tests.snapshot.commands import (
    RecordingReport,
    dates,
    everything_in,
    require_whole,
    server_of,
    take,
)
from tests.snapshot.fake_source import FakeAccount
from tests.snapshot.handmade import ORIGIN, letters, make_snapshot

DATES = [f"2026-11-{day:02}T120000Z" for day in range(1, 4)]
OTHER = msgspec.structs.replace(ORIGIN, account_id="u2")
MARKER = Path(".jmapfs/repository.json")


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


def copy(
    dest: Path, account: FakeAccount | None = None, *, adopt: bool = False, force: bool = False
) -> SnapshotSummary:
    create = partial(
        create_snapshot,
        account or FakeAccount(letters(5)),
        Repository(dest),
        max_gone=50,
        report=RecordingReport(),
        adopt=adopt,
        force=force,
    )
    return trio.run(create)


def refusal(*arguments: str | Path) -> str:
    """Return the message with which a command refuses its arguments."""
    result = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert isinstance(result.exception, UsageError), result.output
    return str(result.exception)


# --- Directories with other things


@pytest.mark.parametrize("name", ["letter.txt", "photos/1.jpg", "latest", "SHA256SUMS"])
def test_a_directory_with_other_things_is_refused(dest: Path, name: str) -> None:
    path = dest / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = everything_in(dest)
    with pytest.raises(UsageError, match="--force-destination"):
        copy(dest)
    assert everything_in(dest) == before
    require_whole(Path(copy(dest, force=True).path))
    # Now it has snapshots.
    copy(dest)
    assert path.read_text() == "mine"


def test_what_file_systems_and_programs_put_there_does_not_matter(dest: Path) -> None:
    for name in ("lost+found", ".stfolder", ".Trash-0", "System Volume Information"):
        (dest / name).mkdir(parents=True)
    for name in (".nobackup", "CACHEDIR.TAG", ".DS_Store", "@eaDir"):
        (dest / name).touch()
    require_whole(Path(copy(dest).path))


def test_a_first_run_that_failed_has_begun_the_repository(dest: Path) -> None:
    with pytest.raises(JmapfsError):
        copy(dest, FakeAccount(letters(5), unavailable={1}))
    (dest / "letter.txt").touch()
    for path in dest.glob(".partial-*"):
        shutil.rmtree(path)
    with pytest.raises(ConfigError, match="--adopt"):
        copy(dest, FakeAccount(letters(5), origin=OTHER))
    copy(dest)


# --- The owner


def test_a_repository_of_an_earlier_version_gets_an_owner(dest: Path) -> None:
    make_snapshot(dest, DATES[0], letters(5))
    (dest / "letter.txt").touch()
    with pytest.raises(ConfigError):
        copy(dest, FakeAccount(letters(5), origin=OTHER))
    assert read_owner(dest) is None
    copy(dest)
    assert read_owner(dest) == ORIGIN


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1}', b"\xff", b"[" * 10_000])
def test_a_damaged_owner_is_written_again(dest: Path, content: bytes) -> None:
    copy(dest)
    (dest / MARKER).write_bytes(content)
    copy(dest)
    assert read_owner(dest) == ORIGIN


def test_the_repository_of_a_later_version_is_refused(dest: Path) -> None:
    copy(dest)
    document = json.loads((dest / MARKER).read_bytes()) | {"format": 2}
    (dest / MARKER).write_text(json.dumps(document))
    with pytest.raises(StorageError, match="later jmapfs"):
        copy(dest)
    assert len(dates(dest)) == 1


def test_the_owner_changes_with_the_first_snapshot_of_another_account(dest: Path) -> None:
    copy(dest)
    with pytest.raises(JmapfsError):
        copy(dest, FakeAccount(letters(5), origin=OTHER, unavailable={1}), adopt=True)
    assert read_owner(dest) == ORIGIN
    copy(dest, FakeAccount(letters(5), origin=OTHER), adopt=True)
    assert read_owner(dest) == OTHER


# --- Directories inside of what jmapfs made


def test_nothing_is_made_inside_of_a_snapshot(dest: Path, tmp_path: Path) -> None:
    path = Path(copy(dest).path)
    shutil.copytree(path, tmp_path / "a copy")
    (dest / f".partial-{DATES[0]}" / "content").mkdir(parents=True)
    before = everything_in(tmp_path)
    inside = [
        (dest / "latest", dest),
        (path, dest),
        (path / "mail", dest),
        (path / "mail/Inbox/new", dest),
        (dest / f".partial-{DATES[0]}", dest),
        (dest / f".partial-{DATES[0]}/content/new", dest),
        (dest / ".jmapfs", dest),
        (tmp_path / "a copy/mail", "another directory"),
    ]
    for place, use in inside:
        with pytest.raises(UsageError, match=f"use {use}$"):
            copy(place, force=True)
        assert refusal("snapshot", "example.org", place).endswith(f"use {use}")
        if place.is_dir():
            assert refusal("snapshots", place).endswith(f"use {use}")
            assert refusal("prune", place, "--keep-last", "1").endswith(f"use {use}")
            assert refusal("diff", place, *DATES[:2]).endswith(f"use {use}")
        if place.is_dir() and place.name not in {"latest", path.name}:
            assert refusal("verify", place).endswith(f"use {use}")
    assert everything_in(tmp_path) == before
    # Next to snapshots, and where the name alone looks so, everything is allowed.
    for place in (dest / "nested", tmp_path / ".jmapfs", tmp_path / ".partial-mine"):
        copy(place)


def test_nothing_is_made_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to("cache")
    for place in (tmp_path / "cache", tmp_path / "link" / "snapshots"):
        message = refusal("snapshot", "--cache-dir", tmp_path / "cache", "example.org", place)
        assert "is in the cache" in message


def test_prune_keeps_what_is_not_of_a_snapshot(dest: Path) -> None:
    """Earlier versions made snapshots inside of snapshots."""
    strange = {
        "nested": "mail",
        "next to the mail": "",
        "in a mailbox": "mail/Inbox",
    }
    made = [make_snapshot(dest, f"2026-10-{day:02}T120000Z", letters(3)) for day in range(1, 8)]
    for place, outer in zip(strange.values(), made, strict=False):
        nested = make_snapshot(outer / place, DATES[0], letters(4))
        # It can be listed, pruned and verified, so that nothing in it is lost.
        assert dates(outer / place) == [nested.name]
        assert CliRunner().invoke(cli, ["snapshots", str(outer / place)]).exit_code == 0
    (made[3] / "mail/Inbox/notes.txt").write_text("mine")
    (made[4] / "mail/Inbox/mine.eml").write_text("mine")
    # Files of a desktop or a NAS are of no value.
    (made[5] / "mail/.DS_Store").touch()
    (made[5] / "mail/Inbox/._0001.eml").touch()
    (made[5] / "mail/Inbox/@eaDir/0001.eml").mkdir(parents=True)
    before = everything_in(dest)
    for _ in range(2):
        result = prune(Repository(dest), RetentionPolicy(last=1), lambda _: None)
        assert [one.date for one in result.plan.left_alone] == [one.name for one in made[:5]]
        assert all("not part of the snapshot" in one.reason for one in result.plan.left_alone)
    assert dates(dest) == [one.name for one in (*made[:5], made[6])]
    left = everything_in(dest)
    assert {path for path in before if not path.startswith(made[5].name)} <= left.keys()
    # When it is moved away, the snapshot can be removed.
    (made[3] / "mail/Inbox/notes.txt").rename(dest / "notes.txt")
    prune(Repository(dest), RetentionPolicy(last=1), lambda _: None)
    assert made[3].name not in dates(dest)


# --- A disk that is not mounted


def test_a_directory_that_had_snapshots_must_not_be_empty(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", "alice@example.org", "secret")
    disk = tmp_path / "disk"
    disk.mkdir()
    with server_of(3, copied="M1") as server:
        take(home, server.url, disk / "mail")
        disk.rename(tmp_path / "unmounted")
        for place in (disk, disk / "mail"):
            place.mkdir()
            result = home.run("snapshot", server.url, disk / "mail")
            assert result.exit_code == 2
            assert "is its disk mounted?" in result.stderr
            assert len(result.stderr.splitlines()) == 1
        assert list((disk / "mail").iterdir()) == []
        take(home, server.url, disk / "mail", "--force-destination")


def test_without_a_place_for_it_nothing_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)
    remember(tmp_path)
    assert not is_known(tmp_path)
