"""A damaged index under a running mount: the account is listed again, and nothing looks partial."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.mount.changing_account import ChangingAccount, small_emails
from tests.mounts import Home, Mounted, fixed
from tests.server import ServerProcess
from tests.waits import wait_until

pytestmark = pytest.mark.mount

RECOVERY_SECONDS = 30
MAILS = 60


@pytest.fixture
def server(account: ChangingAccount) -> ServerProcess:
    return account.server


def index_of(home: Home) -> Path:
    [path] = home.cache.rglob("index.sqlite")
    return path


def garble(path: Path) -> None:
    """Write over all pages but the first, through the file."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(4096)
        file.write(os.urandom(max(0, size - 4096)))


def garble_beginning(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(4096))


def truncate(path: Path) -> None:
    os.truncate(path, 4096)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(b"something else" * 1000)
    other.replace(path)


def replace_by_copy(path: Path) -> None:
    """Replace the index by an earlier copy of itself, which lacks its write-ahead log."""
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.replace(path)


def delete(path: Path) -> None:
    path.unlink()


DAMAGES = (garble, garble_beginning, truncate, empty, replace, replace_by_copy, delete)


def shown(mount: Mounted) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Return the attributes and the content of each email."""
    contents = mount.contents()
    return {path: (fixed(status), contents[path]) for path, status in mount.files().items()}


def shown_or_error(mount: Mounted) -> object:
    try:
        return shown(mount)
    except OSError as error:
        return error.errno


def status_error(mount: Mounted) -> str | None:
    error: str | None = mount.status()["error"]
    return error


def checkpoint(path: Path) -> None:
    """Move the write-ahead log into the file: what is in the log hides damage of the file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def await_recovery(mount: Mounted, before: object, recoveries: int = 1) -> None:
    """Wait until the tree is the same again; until then it is whole or cannot be read."""

    def is_whole() -> bool:
        # The kernel has cached the tree, so this may not ask the daemon. The status does.
        assert mount.ask_status().accounts
        found = shown_or_error(mount)
        assert found == before or isinstance(found, int)
        return found == before and mount.home.log().count("is complete again") >= recoveries

    wait_until(is_whole, RECOVERY_SECONDS)
    assert shown(mount) == before
    assert status_error(mount) is None


def test_the_account_is_listed_again(mount: Mounted, account: ChangingAccount) -> None:
    before = shown(mount)
    assert len(before) == MAILS
    for number, damage in enumerate(DAMAGES, 1):
        checkpoint(index_of(mount.home))
        damage(index_of(mount.home))
        await_recovery(mount, before, number)
        assert mount.home.log().count("is damaged, the account is listed again") == number
    account.control.add_emails(small_emails(100, 1, account.ids["Work"]))
    mount.sync()
    assert len(shown(mount)) == MAILS + 1


def test_a_second_mount_and_a_freeze(mount: Mounted, server: ServerProcess, tmp_path: Path) -> None:
    """The second mount only reads the index. It finds the damage, and the first one repairs it."""
    before = shown(mount)
    with mount.home.mounted(server.url, path=tmp_path / "second") as second:
        assert shown(second) == before
        with mount.leased() as frozen:
            checkpoint(index_of(mount.home))
            garble(index_of(mount.home))
            second.ask_status()
            await_recovery(mount, before)
            await_recovery(second, before)
            wait_until(lambda: not frozen.is_valid())


def test_the_server_is_unreachable(mount: Mounted, server: ServerProcess) -> None:
    before = shown(mount)
    server.control.save(server._saved)
    server.stop()
    delete(index_of(mount.home))
    wait_until(lambda: "the index was damaged" in (status_error(mount) or ""))
    found = shown_or_error(mount)
    assert found in (errno.EIO, before)
    server.restart_on_same_port()
    await_recovery(mount, before)


def test_damage_found_when_a_mount_or_a_snapshot_begins(
    home: Home, server: ServerProcess, tmp_path: Path
) -> None:
    with home.mounted(server.url) as mount:
        before = shown(mount)
    for action in ("mount", "snapshot"):
        path = index_of(home)
        checkpoint(path)
        data = path.read_bytes()
        # One letter of each name: only the checksums of the rows show it.
        path.write_bytes(data.replace(b"_Person-", b"_Qerson-"))
        assert path.read_bytes() != data
        if action == "mount":
            with home.mounted(server.url) as mount:
                assert shown(mount) == before
        else:
            result = home.run("snapshot", server.url, tmp_path / "snapshots")
            assert result.exit_code == 0, result.stderr
            [made] = (tmp_path / "snapshots").glob("2*Z")
            paths = {str(one.relative_to(made / "mail")) for one in made.rglob("*.eml")}
            assert paths == before.keys()
