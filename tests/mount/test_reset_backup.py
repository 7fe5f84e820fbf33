"""A server that was reset or emptied, seen by a backup with `rsync --delete`: nothing is lost.

The ids, the sizes and (where it says so) the times of the new mail are those of the old mail.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mails import random_mail, received_at
from tests.mounts import Home, Mounted
from tests.server import ServerProcess, server_process
from tests.waits import wait_until

pytestmark = pytest.mark.mount

COUNT = 20
# What rsync reports if it could not read some files; then it deletes nothing.
SOME_UNREAD = 23
# What rsync reports if names that it had listed were gone when it came to them.
SOME_VANISHED = 24


def old_mails() -> list[bytes]:
    return [random_mail(number) for number in range(COUNT)]


def new_mails() -> list[bytes]:
    return [random_mail(1000 + number) for number in range(COUNT)]


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with server_process("empty") as server:
        server.control.reset(old_mails(), received_at=times(0))
        yield server


def times(first: int) -> list[str]:
    return [received_at(first + number) for number in range(COUNT)]


def rsync(mount: Mounted, copy: Path) -> list[str]:
    return ["rsync", "-a", "--delete", "--exclude=.jmapfs.json", f"{mount.path}/", str(copy)]


def back_up(mount: Mounted, copy: Path) -> int:
    """Copy the mount as a user does; return the exit code."""
    arguments = rsync(mount, copy)
    return subprocess.run(arguments, check=False, capture_output=True, timeout=60).returncode


def assert_own_content(copy: Path) -> None:
    """Check that each file has the mail that its name says."""
    for path in copy.rglob("*.eml"):
        number = int(path.name.split("_Number-")[1].split("_")[0])
        assert path.read_bytes() == random_mail(number), path.name


def mails_in(copy: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in copy.rglob("*.eml"))


def has_new_state(copy: Path) -> bool:
    """Check that the copy is the old or the new state, and return whether it is the new one."""
    found = mails_in(copy)
    assert found in (sorted(old_mails()), sorted(new_mails()))
    return found == sorted(new_mails())


def reset(server: ServerProcess, how: str) -> None:
    """Reset the server to other mail, or to none."""
    mails = [] if how == "emptied" else new_mails()
    same_times = how == "other mail, same times"
    server.control.reset(mails, received_at=times(0 if same_times else 500)[: len(mails)])


@pytest.mark.parametrize("how", ["emptied", "other mail"])
@pytest.mark.parametrize("state", ["mounted", "unmounted"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not cached"])
def test_rsync_does_not_empty_the_backup(
    server: ServerProcess, home: Home, tmp_path: Path, how: str, state: str, *, cached: bool
) -> None:
    copy = tmp_path / "copy"
    with home.mounted(server.url) as mount:
        if cached:
            assert back_up(mount, copy) == 0
            assert mails_in(copy) == sorted(old_mails())
        else:
            # Only the copy of another day has the content.
            other = Home(tmp_path / "other", home.username, home.password)
            with other.mounted(server.url) as second:
                assert back_up(second, copy) == 0
        new = [] if how == "emptied" else new_mails()
        if state == "mounted":
            reset(server, how)
            # Also before and while the mount finds out.
            for _ in range(3):
                assert back_up(mount, copy) in {0, SOME_UNREAD}
                assert mails_in(copy) == sorted(old_mails())
    if state == "unmounted":
        reset(server, how)
    with home.mounted(server.url) as mount:
        wait_until(lambda: mount.status()["stale"] is not None)
        assert back_up(mount, copy) in {0, SOME_UNREAD}
        assert mails_in(copy) == sorted(old_mails())
        result = home.run("sync", mount.path)
        assert result.exit_code == 14, result
        assert back_up(mount, copy) in {0, SOME_UNREAD}
        assert mails_in(copy) == sorted(old_mails())
        # Only the user decides that the mail is gone.
        result = home.run("sync", "--accept-deletions", mount.path)
        assert result.exit_code == 0, result
        assert back_up(mount, copy) == 0
        assert mails_in(copy) == sorted(new)


def test_a_backup_follows_a_reset_to_mail_of_the_same_times(
    server: ServerProcess, home: Home, tmp_path: Path
) -> None:
    """Ids, sizes and times are the same, and all names differ.

    Each file has its own mail. A run that reports no error has copied one state. A run that meets
    the change reports names that vanished, as on any file system.
    """
    copy = tmp_path / "copy"
    with home.mounted(server.url) as mount:
        assert back_up(mount, copy) == 0
        reset(server, "other mail, same times")

        def follows() -> bool:
            code = back_up(mount, copy)
            assert code in {0, SOME_UNREAD, SOME_VANISHED}
            assert_own_content(copy)
            return code == 0 and has_new_state(copy)

        wait_until(follows, seconds=30)


def test_each_frozen_backup_is_complete_during_a_reset(
    server: ServerProcess, home: Home, tmp_path: Path
) -> None:
    """As before, but each run is made by `jmapfs freeze`: it copies one state, without an error."""
    copy = tmp_path / "copy"
    with home.mounted(server.url) as mount:
        assert back_up(mount, copy) == 0
        reset(server, "other mail, same times")

        def follows() -> bool:
            result = home.run("freeze", mount.path, "--", *rsync(mount, copy))
            assert result.exit_code == 0, result.stderr
            assert_own_content(copy)
            return has_new_state(copy)

        wait_until(follows, seconds=30)


def test_a_backup_is_complete_when_the_mail_is_back(
    server: ServerProcess, home: Home, tmp_path: Path
) -> None:
    """The server was empty for a while, as during a restore; then it has its mail and more."""
    copy = tmp_path / "copy"
    with home.mounted(server.url) as mount:
        assert back_up(mount, copy) == 0
        reset(server, "emptied")
        wait_until(lambda: mount.status()["stale"] is not None)
        assert back_up(mount, copy) == 0
        assert mails_in(copy) == sorted(old_mails())
        restored = [*old_mails(), random_mail(77)]
        server.control.reset(restored, received_at=[*times(0), received_at(77)])
        assert home.run("sync", mount.path).exit_code == 0
        assert mount.status()["stale"] is None
        assert back_up(mount, copy) == 0
        assert mails_in(copy) == sorted(restored)
