"""Full and read-only disks: one line, the right exit code, nothing lost; and then all goes on."""

from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from jmapfs.errors import StorageError
from tests.cache.small_disk import needs_root, tmpfs
from tests.crash.forked import ForkedHome
from tests.mount.changing_account import ChangingAccount, read_state, tree_of
from tests.mounts import Result
from tests.snapshot.commands import dates, require_whole
from tests.snapshot.commands import tree_of as mails_of

pytestmark = [needs_root, pytest.mark.timeout(120)]

FULL = StorageError.exit_code


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Fill a disk to the last byte within the context."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Make a disk read-only within the context."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


Fault = Callable[[Path], contextlib.AbstractContextManager[None]]
EACH_FAULT = pytest.mark.parametrize("fault", [filled, read_only])


def one_line(result: Result, *exit_codes: int) -> str:
    """Check that a command ended with one line and one of these codes; return the line."""
    assert result.exit_code in exit_codes, result
    assert len(result.stderr.splitlines()) == 1, result
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.mount
@EACH_FAULT
def test_the_disk_of_the_cache_before_the_mount(
    account: ChangingAccount, home: ForkedHome, fault: Fault
) -> None:
    url, mountpoint = account.server.url, home.directory / "mnt"
    mountpoint.mkdir()
    dest = home.directory / "dest"
    with tmpfs(home.cache, "16m") as disk:
        with fault(disk):
            one_line(home.run("mount", url, mountpoint), FULL)
            assert list(mountpoint.iterdir()) == []
            one_line(home.run("snapshot", url, dest), FULL)
            assert dates(dest) == []
        with home.mounted(url) as mount:
            assert tree_of(read_state(mount)) == account.tree()
        assert home.run("snapshot", "--quiet", url, dest) == Result(0, "", "")


@pytest.mark.mount
def test_the_disk_of_the_cache_under_a_mount(account: ChangingAccount, home: ForkedHome) -> None:
    url, dest = account.server.url, home.directory / "dest"
    with tmpfs(home.cache, "16m") as disk, home.mounted(url) as mount:
        before = read_state(mount)
        with filled(disk):
            account.churn()
            one_line(home.run("sync", mount.path), FULL)
            # The tree is as it was, and what the cache or the server has can be read.
            found = mount.contents()
            known = {email.sha256 for email in account.control.dump().emails}
            known |= {sha256(content).hexdigest() for _, content in before.values()}
            assert {sha256(content).hexdigest() for content in found.values()} <= known
            assert found.keys() == {path for path in before if path.endswith(".eml")}
            assert "disk" in home.run("status", mount.path).stdout
            # A mount that cannot be brought up to date is copied only on request.
            result = home.run("snapshot", "--quiet", mount.path, dest, seconds=110)
            one_line(result, FULL)
        mount.sync()
        assert tree_of(read_state(mount)) == account.tree()
        assert home.run("snapshot", "--quiet", mount.path, dest) == Result(0, "", "")
    assert "Traceback" not in home.log()


@EACH_FAULT
def test_the_disk_of_the_snapshots(
    account: ChangingAccount, home: ForkedHome, fault: Fault
) -> None:
    url = account.server.url
    with tmpfs(home.directory / "backup", "16m") as disk:
        dest = disk / "dest"
        assert home.run("snapshot", "--quiet", url, dest) == Result(0, "", "")
        account.churn()
        [first] = dates(dest)
        with fault(disk):
            one_line(home.run("snapshot", url, dest), FULL)
            assert dates(dest) == [first]
            require_whole(dest / first)
            # Reading needs no space.
            assert home.run("snapshots", dest).exit_code == 0
            verified = home.run("verify", "--quiet", dest / first)
            assert verified.exit_code in {0, FULL}, verified
            assert len(verified.stderr.splitlines()) <= 1
        assert home.run("snapshot", "--quiet", url, dest) == Result(0, "", "")
        assert not list(dest.glob(".partial*"))
        truth: Counter[str] = sum(account.tree().values(), Counter())
        last = dates(dest)[-1]
        assert Counter(digest for digest, _, _ in mails_of(dest / last).values()) == truth
        with fault(disk):
            pruned = home.run("prune", "--keep-last", "1", dest)
            if fault is filled:
                # Space is freed, so it must work.
                assert pruned.exit_code == 0, pruned
                assert dates(dest) == [last]
            else:
                one_line(pruned, FULL)
        require_whole(dest / last)


@pytest.mark.mount
@EACH_FAULT
def test_the_disk_of_the_log(account: ChangingAccount, home: ForkedHome, fault: Fault) -> None:
    """A mount needs no log."""
    url, mountpoint = account.server.url, home.directory / "mnt"
    with tmpfs(home.directory / "state" / "jmapfs", "1m") as disk:
        with fault(disk):
            mountpoint.mkdir()
            result = home.run("mount", url, mountpoint)
            if result.exit_code:
                one_line(result, FULL)
                assert list(mountpoint.iterdir()) == []
            else:
                home.run("umount", mountpoint)
        with home.mounted(url) as mount, filled(disk):
            account.churn()
            mount.sync()
            assert tree_of(read_state(mount)) == account.tree()
