"""A server that was reset under a running mount: no wrong byte, and no emptied tree."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import Home, Mounted
from tests.server import ServerProcess, server_process
from tests.waits import wait_until

pytestmark = pytest.mark.mount

USER, PASSWORD = "alice@example.org", "secret"
DATES = [f"2024-03-01T00:{number:02}:00Z" for number in range(40)]
LATER = [f"2025-03-01T00:{number:02}:00Z" for number in range(40)]


def mails(kind: str, count: int = 12) -> list[bytes]:
    """Return mails of equal sizes; `kind` is a word of five letters."""
    return [
        f"From: a@example.org\r\nSubject: {kind} {number:03}\r\n\r\n{kind} {number:03}\r\n".encode()
        for number in range(count)
    ]


def digests(contents: list[bytes]) -> list[str]:
    return sorted(hashlib.sha256(content).hexdigest() for content in contents)


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with server_process("empty") as server:
        server.control.reset(mails("first"), received_at=DATES[:12])
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", USER, PASSWORD)


def sync(home: Home, mount: Mounted, *options: str) -> tuple[int, str]:
    result = home.run("sync", *options, mount.path)
    return result.exit_code, result.stdout + result.stderr


def stale_of(mount: Mounted) -> dict[str, object] | None:
    stale: dict[str, object] | None = mount.status()["stale"]
    return stale


def assert_kept(home: Home, mount: Mounted, before: dict[str, bytes]) -> None:
    """The old tree is there. What is in the cache is right, and nothing else can be read."""
    assert set(mount.files()) == set(before)
    for path, content in before.items():
        try:
            assert (mount.path / path).read_bytes() == content
        except OSError:
            continue
    code, output = sync(home, mount)
    assert code == 14
    assert "12 of 12 mails are gone" in output
    assert "--accept-deletions" in output
    assert stale_of(mount) is not None
    document = json.loads((mount.path / ".jmapfs.json").read_bytes())
    assert document["stale"]["gone"] == 12
    assert document["online"]


def test_a_reset_does_not_empty_the_tree(server: ServerProcess, home: Home) -> None:
    """The ids and sizes are equal, the dates are not."""
    with home.mounted(server.url) as mount:
        before = mount.contents()
        assert stale_of(mount) is None
        server.control.reset(mails("other"), received_at=LATER[:12])
        assert_kept(home, mount, before)
        assert mount.contents() == before  # cached
        text = home.run("status", mount.path).stdout
        assert "12 of 12 mails are gone" in text
        assert "accept-deletions" in text
        # A remount shows the same, and says so.
        mount.umount()
        again = home.mount(server.url, mount.path)
        assert_kept(home, again, before)
        assert "12 of 12 mails are gone" in again.result.stderr
        assert sync(home, again, "--accept-deletions") == (0, "")
        assert digests(list(again.contents().values())) == digests(mails("other"))
        assert stale_of(again) is None
        assert sync(home, again) == (0, "")
        # What a new cache shows is the same.
        names = set(again.files())
        again.umount()
        again.clear()
        fresh = Home(home.directory.parent / "fresh", USER, PASSWORD)
        with fresh.mounted(server.url) as other:
            assert set(other.files()) == names


def test_a_mail_that_was_not_read_is_not_served_by_id(server: ServerProcess, home: Home) -> None:
    with home.mounted(server.url) as mount:
        paths = sorted(mount.files())
        server.control.reset(mails("other"), received_at=LATER[:12])
        assert sync(home, mount)[0] == 14
        for path in paths:
            with pytest.raises(OSError, match="error"):
                (mount.path / path).read_bytes()


@pytest.mark.parametrize("read_before", [True, False])
def test_the_kernel_keeps_no_content_of_a_reused_inode(
    server: ServerProcess, home: Home, *, read_before: bool
) -> None:
    """Ids, sizes and dates are equal, so inodes are reused: only the subjects differ."""
    with home.mounted(server.url) as mount:
        before = mount.contents() if read_before else dict.fromkeys(mount.files(), b"")
        inodes = {status.st_ino for status in mount.files().values()}
        held = [os.open(mount.path / path, os.O_RDONLY) for path in before]
        try:
            server.control.reset(mails("other"), received_at=DATES[:12])
            assert sync(home, mount)[0] == 0
            files = mount.files()
            assert {status.st_ino for status in files.values()} == inodes
            assert not set(files) & set(before)
            # Files that are still open have no content any more, neither old nor new.
            for descriptor in held:
                with pytest.raises(OSError, match="error"):
                    os.pread(descriptor, 100, 0)
        finally:
            for descriptor in held:
                os.close(descriptor)
        # The kernel releases files a moment after they are closed.
        wait_until(lambda: readable(mount), 10)
        assert digests(list(mount.contents().values())) == digests(mails("other"))


def readable(mount: Mounted) -> bool:
    try:
        return bool(mount.contents())
    except OSError:
        return False


def test_mail_that_is_back(server: ServerProcess, home: Home) -> None:
    with home.mounted(server.url) as mount:
        before = mount.contents()
        server.control.reset([])
        assert_kept(home, mount, before)
        server.control.reset(mails("first"), received_at=DATES[:12])
        assert sync(home, mount) == (0, "")
        assert stale_of(mount) is None
        assert mount.contents() == before


def test_a_frozen_mount_keeps_its_state(server: ServerProcess, home: Home) -> None:
    with home.mounted(server.url) as mount:
        before = mount.contents()
        mount.freeze(60)
        server.control.reset(mails("other"), received_at=DATES[:8] + LATER[:4])
        assert sync(home, mount)[0] == 0
        assert mount.contents() == before
        assert mount.thaw()
        assert digests(list(mount.contents().values())) == digests(mails("other"))


def test_a_second_mount_sees_the_same(server: ServerProcess, home: Home, tmp_path: Path) -> None:
    with home.mounted(server.url) as mount:
        before = mount.contents()
        with home.mounted(server.url, path=tmp_path / "second") as second:
            server.control.reset(mails("other"), received_at=LATER[:12])
            assert sync(home, mount)[0] == 14
            assert_kept(home, second, before)
            code, output = sync(home, second, "--accept-deletions")
            assert code == 9
            assert "another process" in output
            assert sync(home, mount, "--accept-deletions")[0] == 0
            assert sync(home, second)[0] == 0
            for one in (mount, second):
                assert digests(list(one.contents().values())) == digests(mails("other"))


def test_deletions_cannot_be_accepted_offline(server: ServerProcess, home: Home) -> None:
    with home.mounted(server.url) as mount:
        before = mount.contents()
        server.control.reset(mails("other"), received_at=LATER[:12])
        assert sync(home, mount)[0] == 14
        server.stop()
        code, output = sync(home, mount, "--accept-deletions")
        assert code == 5, output
        assert mount.contents() == before
        mount.umount()
        # Without the server the old tree is shown again.
        again = home.mount(server.url, mount.path)
        assert stale_of(again) is not None
        assert again.contents() == before
        again.umount()


def test_deletions_of_several_accounts_are_accepted(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", USER, PASSWORD)
    with server_process("empty") as server:
        server.control.reset(mails("first"), received_at=DATES[:12])
        server.control.add_account("Ateam", "team@example.org")
        with server.control.account("Ateam") as team:
            team.reset(mails("teams"), received_at=DATES[:12])
            with home.mounted(server.url, "--all-accounts") as mount:
                before = read_all(mount)
                team.reset([])
                assert sync(home, mount)[0] == 14
                assert read_all(mount) == before
                stale = [account["stale"] for account in mount.status()["accounts"]]
                assert sorted(one is None for one in stale) == [False, True]
                assert sync(home, mount, "--accept-deletions") == (0, "")
                assert digests(list(read_all(mount).values())) == digests(mails("first"))


def read_all(mount: Mounted) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in mount.path.rglob("*.eml")}
