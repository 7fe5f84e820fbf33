"""One mount for each mountpoint, and what `jmapfs umount` tells if something is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from jmapfs.control.mounts import mounts
from jmapfs.daemon.mountpoint import MountpointLock
from jmapfs.errors import BusyError
from tests.mounts import Home, Mounted, command
from tests.server import ServerProcess, server_process
from tests.users import UserHome
from tests.waits import has_ended, wait_until

pytestmark = pytest.mark.mount


@pytest.fixture
def mountpoint(home: Home) -> Path:
    path = home.directory / "mnt"
    path.mkdir()
    return path


@contextmanager
def starting(home: Home, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run `jmapfs mount` with these arguments; interrupt it at the end."""
    line = [*home.program, "mount", *map(str, arguments)]
    with subprocess.Popen(
        line, env=home.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=30)


def at(path: Path) -> int:
    """Return how many mounts of jmapfs are at a path."""
    return sum(one.ours and one.mountpoint == path for one in mounts())


@pytest.mark.parametrize("dead", [False, True])
def test_one_of_several_simultaneous_mounts_succeeds(
    home: Home, server: ServerProcess, mountpoint: Path, *, dead: bool
) -> None:
    link = home.directory / "link"
    link.symlink_to(mountpoint)
    if dead:
        os.kill(home.mount(server.url, mountpoint).status()["pid"], signal.SIGKILL)
    try:
        with ExitStack() as stack:
            spellings: list[str | Path] = [mountpoint, link, f"{mountpoint.parent}/./mnt/"]
            processes = [
                stack.enter_context(starting(home, server.url, path)) for path in spellings
            ]
            results = sorted(
                (process.wait(timeout=30), process.communicate()[1]) for process in processes
            )
        assert results[0][0] == 0
        for code, text in results[1:]:
            reason = {7: "jmapfs is mounted there already", 9: "is mounting there"}[code]
            assert reason in text.splitlines()[-1]
            assert dead or len(text.splitlines()) == 1
        assert at(mountpoint) == 1
        assert Mounted(home, mountpoint, home.run("status", mountpoint)).files()
    finally:
        assert home.run("umount", mountpoint).exit_code == 0
    assert list(mountpoint.iterdir()) == []
    assert "Traceback" not in home.log()


def test_a_mount_that_is_still_listing_has_the_mountpoint(home: Home, alice: UserHome) -> None:
    """Also for another user, for a mount in the foreground, and for a bind mount of it."""
    if os.geteuid() != 0:
        pytest.skip("only root can make bind mounts")
    mountpoint, other = alice.mountpoint(), home.directory / "bound"
    other.mkdir()
    with server_process("sample", max_objects_in_get=1, request_delay=0.1) as server:
        command("mount", "--bind", mountpoint, other)
        try:
            with starting(alice, server.url, mountpoint) as first:
                wait_until(lambda: server.control.counts().methods.get("Email/get", 0) >= 2)
                for path, options in ((mountpoint, ()), (mountpoint, ("-f",)), (other, ())):
                    result = home.run("mount", *options, server.url, path)
                    assert result.exit_code == 9
                    (line,) = result.stderr.splitlines()
                    assert f"{path}: process " in line
                    assert "is mounting there" in line
                assert first.poll() is None
        finally:
            command("umount", other)
        assert first.returncode == 130
        # The lock has ended with its process, and no file is left.
        assert list(mountpoint.iterdir()) == []
    assert at(mountpoint) == 0


def test_the_lock_belongs_to_the_directory_that_is_mounted_on(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    with MountpointLock(path) as lock, MountpointLock(path) as other:
        lock.hold()
        lock.hold()
        with pytest.raises(BusyError, match=f"process {os.getpid()} is mounting there"):
            other.hold()
        # The directory is replaced while the account is listed.
        path.rename(tmp_path / "old")
        path.mkdir()
        other.hold()
        with pytest.raises(BusyError):
            lock.hold()
        other.release()
        lock.hold()
    assert list(path.iterdir()) == []


IMPATIENT = """
from jmapfs.daemon import mountpoint
mountpoint._EXIT_SECONDS = 1
from jmapfs.cli.main import main
main()
"""


def test_umount_names_a_daemon_that_does_not_end(
    home: Home, server: ServerProcess, mountpoint: Path
) -> None:
    pid = home.mount(server.url, mountpoint).status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    home.program = (sys.executable, "-c", IMPATIENT)
    try:
        result = home.run("umount", mountpoint)
        assert result.exit_code == 9
        assert f"unmounted, but its daemon (process {pid}) has not ended" in result.stderr
        assert at(mountpoint) == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    # It ends by itself.
    wait_until(lambda: has_ended(pid))
    assert home.run("umount", mountpoint).exit_code == 10


def test_umount_waits_for_a_daemon_in_another_network_namespace(
    alice: UserHome, server: ServerProcess
) -> None:
    """A user cannot connect to it there, but sees that it ends."""
    with alice.mounted(server.url, path=alice.mountpoint()) as mount:
        pid = mount.status()["pid"]
        inside = Home(alice.directory, variables=alice.variables)
        inside.program = ["unshare", "--net", *alice.program]
        os.kill(pid, signal.SIGSTOP)
        program = [*alice.program[:-2], "-c", IMPATIENT]
        inside.program = ["unshare", "--net", *program]
        result = inside.run("umount", mount.path)
        assert result.exit_code == 9
        assert "perhaps its daemon still runs" in result.stderr
        assert at(mount.path) == 0
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: has_ended(pid))

        pid = alice.mount(server.url, mount.path).status()["pid"]
        assert inside.run("umount", mount.path).exit_code == 0
        # Its address is gone; it ends a moment later.
        wait_until(lambda: has_ended(pid))


# Mounts without a look at what is there: with the check after the mount, and without it.
RACING = """
from jmapfs.cli import mount_command
from jmapfs.daemon import mountpoint
mountpoint.check_mountpoint = mount_command.check_mountpoint = lambda *_: None
"""
STACKING = "mountpoint.require_only_mount = lambda mount: None\n"
MAIN = """
from jmapfs.cli.main import main
main()
"""


def test_two_mounts_in_one_place(home: Home, server: ServerProcess, mountpoint: Path) -> None:
    """Where a directory cannot be locked, a second mount notices the first one, and ends."""
    mount = home.mount(server.url, mountpoint)
    racing = Home(home.directory, home.username, home.password)
    racing.program = (sys.executable, "-c", RACING + MAIN)
    result = racing.run("mount", server.url, mountpoint)
    assert result.exit_code == 7
    assert "mounted there already" in result.stderr
    assert at(mountpoint) == 1
    assert mount.files()

    # Earlier versions left both, and `umount` unmounts one of them.
    racing.program = (sys.executable, "-c", RACING + STACKING + MAIN)
    racing.mount(server.url, mountpoint)
    assert at(mountpoint) == 2
    result = home.run("umount", mountpoint)
    assert result.exit_code == 9
    assert "there was another one below it: run the command again" in result.stderr
    assert home.run("umount", mountpoint).exit_code == 0
    assert at(mountpoint) == 0
