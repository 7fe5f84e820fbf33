"""Snapshots of a mounted tree: the same as those of its account, and of one state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmapfs.errors import (
    BusyError,
    ConfigError,
    NotMountedError,
    TooMuchGoneError,
    UnreachableError,
    UsageError,
)
from jmapfs.snapshot.from_mount import not_compared
from tests.mounts import SHORT_LEASE, Home, Mounted
from tests.relay import Relay
from tests.snapshot.accounts import (
    Churn,
    arrived_in_one_state,
    by_directory,
    churning,
)
from tests.snapshot.commands import dates, require_whole, take, tree_of
from tests.stored_mail import StoredMail, sha256
from tests.waits import wait_until

pytestmark = pytest.mark.mount


@pytest.fixture
def home(few: StoredMail, tmp_path: Path) -> Home:
    return few.home(tmp_path)


@pytest.fixture
def mount(few: StoredMail, home: Home) -> Iterator[Mounted]:
    with home.mounted(few.account.url) as mount:
        yield mount


def test_by_account_and_by_mount_they_are_the_same(stored: StoredMail, tmp_path: Path) -> None:
    home = stored.home(tmp_path)
    by_account = take(stored.home(tmp_path / "other"), stored.account.url, tmp_path / "one")
    with home.mounted(stored.account.url) as mount:
        by_mount = take(home, mount.path, tmp_path / "two")
        shown = {f"mail/{path}": status for path, status in mount.files().items()}
        assert mount.status()["frozen"] is None
    assert by_account.manifest == by_mount.manifest
    assert tree_of(by_account.path) == tree_of(by_mount.path)
    assert by_directory(by_mount) == stored.digests
    require_whole(by_mount.path)
    for path, status in shown.items():
        saved = (by_mount.path / path).stat()
        assert (saved.st_size, saved.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        assert saved.st_nlink == status.st_nlink
    one, two = (
        json.loads((taken.path / "snapshot.json").read_bytes()) for taken in (by_account, by_mount)
    )
    of_run = {"date", "comparedAt"}
    assert {key: one[key] for key in one if key not in of_run} == {
        key: two[key] for key in two if key not in of_run
    }
    # Each continues with the other's snapshot.
    with home.mounted(stored.account.url) as mount:
        again = take(home, mount.path, tmp_path / "one")
        assert mount.status()["fuse"].get("read", 0) == 0
    assert again.summary["fetched"] == 0
    assert take(home, stored.account.url, tmp_path / "two").summary["fetched"] == 0


def test_a_mount_that_has_not_compared_the_numbers_for_long() -> None:
    assert not_compared(time.time() - 3700) == ""
    # The clock was set back.
    assert "could not compare" in not_compared(time.time() + 3600)
    assert not_compared(0.0).endswith("server yet, so nothing shows whether mail is lacking")
    assert "since 2023-11-14T22:13:20+00:00" in not_compared(1.7e9)


def test_of_an_account_that_is_mounted(
    few: StoredMail, home: Home, mount: Mounted, tmp_path: Path
) -> None:
    """The mount keeps the index, and is asked to bring it up to date."""
    take(home, few.account.url, tmp_path / "dest")
    mail = b"Subject: a moment ago\r\n\r\nText.\r\n"
    few.account.fill("Work", [mail])
    taken = take(home, few.account.url, tmp_path / "dest")
    assert taken.summary["new"] == taken.summary["fetched"] == 1
    assert by_directory(taken)["Work"] == few.digests["Work"] + Counter([sha256(mail)])
    assert any("a-moment-ago" in path for path in mount.files())


def test_a_directory_of_it(few: StoredMail, home: Home, mount: Mounted, tmp_path: Path) -> None:
    taken = take(home, mount.path / "Work", tmp_path / "dest")
    wanted = {name: few.digests[name] for name in ("Work", "Work/Clients")}
    assert by_directory(taken) == wanted
    require_whole(taken.path)
    described = json.loads((taken.path / "snapshot.json").read_bytes())
    assert described["origin"]["directory"] == "Work"
    assert [mailbox["path"] for mailbox in described["mailboxes"]] == ["Work", "Work/Clients"]
    nested = take(home, mount.path / "Work" / "Clients", tmp_path / "nested")
    assert by_directory(nested) == {"Work/Clients": few.digests["Work/Clients"]}
    for source in (mount.path, few.account.url, mount.path / "Lists"):
        result = home.run("snapshot", source, tmp_path / "dest")
        assert result.exit_code == ConfigError.exit_code
        assert "choose another directory" in result.stderr


def test_where_it_may_not_be(few: StoredMail, home: Home, mount: Mounted, tmp_path: Path) -> None:
    for source in (few.account.url, mount.path):
        result = home.run("snapshot", source, mount.path / "dest")
        assert result.exit_code == UsageError.exit_code
        assert "is inside a mount" in result.stderr
    (tmp_path / "link").symlink_to(mount.path / "Work")
    result = home.run("snapshot", mount.path, tmp_path / "link" / "dest")
    assert result.exit_code == UsageError.exit_code
    result = home.run("snapshot", mount.path, tmp_path)
    assert result.exit_code == UsageError.exit_code
    assert "contains the mount" in result.stderr
    result = home.run("snapshot", mount.path / "nothing", tmp_path / "dest")
    assert result.exit_code == UsageError.exit_code
    result = home.run("snapshot", tmp_path / "home", tmp_path / "dest")
    assert result.exit_code in {NotMountedError.exit_code, ConfigError.exit_code}
    assert not (tmp_path / ".jmapfs").exists()
    assert dates(tmp_path / "dest") == []


def test_among_changes_it_is_one_state(few: StoredMail, home: Home, tmp_path: Path) -> None:
    account = few.account
    before = churning(account, few.digests)
    with home.mounted(account.url, "--poll-interval", "1") as mount, Churn(account) as churn:
        taken = [take(home, mount.path, tmp_path / "dest") for _ in range(4)]
    assert churn.error is None
    for one in taken:
        require_whole(one.path)
        arrived_in_one_state(one, before, account.inbox)
    assert len({one.manifest for one in taken}) > 1


def test_killed_it_leaves_nothing_frozen(
    few: StoredMail, home: Home, mount: Mounted, tmp_path: Path
) -> None:
    few.account.fill("INBOX", [b"Subject: inbox %d\r\n\r\n." % n for n in range(2000)])
    with subprocess.Popen(
        [*SHORT_LEASE, "snapshot", "--quiet", mount.path, tmp_path / "dest"],
        env=home.environment,
    ) as process:
        wait_until(lambda: mount.is_frozen, 30)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not mount.is_frozen)
    taken = take(home, mount.path, tmp_path / "dest")
    require_whole(taken.path)
    assert len(taken.mails) == 60 + 2000


def test_a_daemon_that_dies(few: StoredMail, home: Home, mount: Mounted, tmp_path: Path) -> None:
    few.account.fill("INBOX", [b"Subject: inbox %d\r\n\r\n." % n for n in range(2000)])
    daemon = mount.status()["pid"]

    def kill() -> None:
        deadline = time.monotonic() + 30
        while not list((tmp_path / "dest").glob(".partial*")) and time.monotonic() < deadline:
            time.sleep(0.001)
        subprocess.run(["kill", "-9", str(daemon)], check=True)

    killing = threading.Thread(target=kill)
    killing.start()
    result = home.run("snapshot", mount.path, tmp_path / "dest")
    killing.join()
    assert result.exit_code == NotMountedError.exit_code, result.stderr
    assert dates(tmp_path / "dest") == []
    result = home.run("snapshot", mount.path, tmp_path / "dest")
    assert result.exit_code == NotMountedError.exit_code, result.stderr
    require_whole(take(home, few.account.url, tmp_path / "dest").path)


def test_a_thaw_in_between_ends_it(
    few: StoredMail, home: Home, mount: Mounted, tmp_path: Path
) -> None:
    few.account.fill("INBOX", [b"Subject: inbox %d\r\n\r\n." % n for n in range(2000)])
    with subprocess.Popen(
        [*home.program, "snapshot", "--quiet", mount.path, tmp_path / "dest"],
        env=home.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: mount.is_frozen, 30)
        mount.thaw()
        _, errors = process.communicate(timeout=60)
    assert process.returncode in {8, BusyError.exit_code}, errors
    assert dates(tmp_path / "dest") == []


def test_within_a_freeze(few: StoredMail, home: Home, mount: Mounted, tmp_path: Path) -> None:
    """A mount that was frozen stays frozen, and that state is copied."""
    mount.sync()
    mount.freeze(600)
    few.account.expunge("Work", [1])
    taken = take(home, mount.path, tmp_path / "dest")
    assert by_directory(taken) == few.digests
    result = home.run("snapshot", mount.path, tmp_path / "dest")
    assert result.exit_code == 0
    assert f"{mount.path} is frozen: copying its state of" in result.stderr
    assert mount.status()["frozen"]
    mount.thaw()


def test_offline(few: StoredMail, home: Home, tmp_path: Path) -> None:
    """Cached mail can be copied without the server, the rest when it is back."""
    with Relay(few.account.http_port) as relay:
        url = few.account.url.replace(str(few.account.http_port), str(relay.port))
        with home.mounted(url, "--poll-interval", "1") as mount:
            assert mount.path.joinpath("Work").is_dir()
            for path in sorted((mount.path / "Work").rglob("*.eml")):
                path.read_bytes()
            relay.break_after(0)
            wait_until(lambda: not mount.ask_status().online, 60)
            # The state may be old: without --allow-stale it is not taken for the current one.
            result = home.run("snapshot", mount.path / "Work", tmp_path / "dest")
            assert result.exit_code == UnreachableError.exit_code, result.stderr
            assert "cannot be brought up to date" in result.stderr
            result = home.run("snapshot", "--allow-stale", mount.path, tmp_path / "dest")
            assert result.exit_code == UnreachableError.exit_code, result.stderr
            assert "is offline" in result.stderr
            assert dates(tmp_path / "dest") == []
            result = home.run("snapshot", "--allow-stale", mount.path / "Work", tmp_path / "work")
            assert "is not up to date: copying its state of 20" in result.stderr
            taken = take(home, mount.path / "Work", tmp_path / "work", "--allow-stale")
            assert by_directory(taken)["Work"] == few.digests["Work"]
            relay.restore()
            wait_until(lambda: mount.ask_status().online, 90)
            require_whole(take(home, mount.path, tmp_path / "dest").path)


def test_much_that_is_gone(few: StoredMail, home: Home, mount: Mounted, tmp_path: Path) -> None:
    take(home, mount.path, tmp_path / "dest")
    few.account.delete_mailbox("Lists/exmh")
    few.account.expunge("Work", range(1, 100))
    few.account.expunge("INBOX", range(1, 100))
    # Cyrus cannot report that many changes: the mount keeps the old tree first.
    for hint in ("--accept-deletions", "--max-gone 100 makes one all the same"):
        result = home.run("snapshot", mount.path, tmp_path / "dest")
        assert result.exit_code == TooMuchGoneError.exit_code
        assert hint in result.stderr
        assert len(dates(tmp_path / "dest")) == 1
        assert home.run("sync", "--accept-deletions", mount.path).exit_code == 0
    taken = take(home, mount.path, tmp_path / "dest", "--max-gone", "90")
    assert taken.summary["gone"] > 30


def test_a_mount_of_several_accounts(few: StoredMail, home: Home, tmp_path: Path) -> None:
    with home.mounted(few.account.url, "--all-accounts") as mount:
        [name] = [path.name for path in mount.path.iterdir() if path.is_dir()]
        result = home.run("snapshot", mount.path, tmp_path / "dest")
        assert result.exit_code == UsageError.exit_code
        assert "several accounts" in result.stderr
        taken = take(home, mount.path / name, tmp_path / "dest")
        nested = take(home, mount.path / name / "Work", tmp_path / "nested")
    assert by_directory(taken) == few.digests
    assert set(by_directory(nested)) == {"Work", "Work/Clients"}
    # It is the account's, however it is copied.
    again = take(home, few.account.url, tmp_path / "dest")
    assert again.summary["fetched"] == 0
    assert again.manifest == taken.manifest


def test_a_mountpoint_that_is_no_text(few: StoredMail, home: Home, tmp_path: Path) -> None:
    with home.mounted(few.account.url, path=tmp_path / os.fsdecode(b"m\xff")) as mount:
        assert mount.status()["mountpoint"] == f"{tmp_path}/m\\xff"
        # An account is also asked for among the mounts, and none of them may be hurt by it.
        by_account = take(home, few.account.url, tmp_path / "one")
        by_mount = take(home, mount.path, tmp_path / os.fsdecode(b"two\xff"))
        assert by_account.manifest == by_mount.manifest
