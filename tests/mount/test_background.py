"""The daemon in the background: what it keeps when it starts, and removes when it ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import COMMAND_SECONDS, Home, Mounted, Result, command
from tests.server import ServerProcess
from tests.waits import has_ended, wait_until

pytestmark = pytest.mark.mount


def shell(script: str, home: Home, *arguments: str | Path, passed: tuple[int, ...] = ()) -> int:
    """Run a shell script; the arguments are `$1` and so on, and `$@` are those of `jmapfs`."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *map(str, arguments)],
        env=home.environment,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_SECONDS,
        pass_fds=passed,
        check=False,
    ).returncode


@pytest.fixture
def mount(home: Home, tmp_path: Path) -> Iterator[Mounted]:
    """A mount that the test makes with `shell`."""
    path = tmp_path / "mnt"
    path.mkdir()
    mount = Mounted(home, path, Result(0, "", ""))
    yield mount
    mount.clear()


def test_a_cron_job_under_flock_runs_again(
    home: Home, server: ServerProcess, mount: Mounted, tmp_path: Path
) -> None:
    job = ["flock", "--nonblock", "--conflict-exit-code", "75", str(tmp_path / "lock")]
    assert shell('"$@"', home, *job, *home.program, "mount", server.url, mount.path) == 0
    # The daemon lives, and does not hold the lock of the job that has ended.
    assert shell('"$@"', home, *job, *home.program, "status", mount.path) == 0
    assert shell('"$@"', home, *job, "true") == 0
    assert mount.files()


def test_descriptors_are_not_inherited(
    home: Home, server: ServerProcess, mount: Mounted, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    script = """
    cd "$1"; shift
    exec 3>three 9<>nine 200>two_hundred
    ulimit -Sn 64
    exec "$@"
    """
    arguments: list[str | Path] = [held, *home.program, "mount", server.url, mount.path]
    read_end, write_end = os.pipe()
    try:
        # With a limit that is lower than a descriptor that is open.
        assert shell(script, home, *arguments, passed=(write_end,)) == 0
        os.close(write_end)
        assert os.read(read_end, 1) == b""
        process = Path("/proc", str(mount.status()["pid"]))
        targets = [str(one.readlink()) for one in (process / "fd").iterdir()]
        assert [one for one in targets if str(held) in one] == []
        assert (process / "cwd").readlink() == Path("/")
        for number in range(3):
            assert (process / "fd" / str(number)).readlink() == Path("/dev/null")
    finally:
        os.close(read_end)


def test_standard_streams_may_be_closed(
    home: Home, server: ServerProcess, mount: Mounted, tmp_path: Path
) -> None:
    """As some programs that start daemons close them."""
    script = '"$@" <&- >&- 2>&-'
    assert shell(script, home, *home.program, "mount", server.url, mount.path) == 0
    assert mount.files()
    assert shell(script, home, *home.program, "status", tmp_path) == 10


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    path = tmp_path / "volume"
    path.mkdir()
    command("mount", "-t", "tmpfs", "tmpfs", path)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)


def test_a_volume_in_use_by_the_caller_can_be_unmounted_later(
    home: Home, server: ServerProcess, volume: Path, mount: Mounted
) -> None:
    script = 'cd "$1"; shift; exec 5>file 1>log 2>&1; exec "$@"'
    assert shell(script, home, volume, *home.program, "mount", server.url, mount.path) == 0
    command("umount", volume)
    assert mount.files()


@pytest.mark.parametrize("ending", ["signal", "close"])
def test_a_daemon_that_ends_leaves_its_successor_alone(
    home: Home, server: ServerProcess, ending: str
) -> None:
    with home.mounted(server.url) as mount:
        pid = mount.status()["pid"]
        mail = mount.path / min(mount.files())
        with mail.open("rb") as held:
            command("fusermount3", "-u", "-z", mount.path)
            second = home.mount(server.url, mount.path)
            assert not has_ended(pid)
            new_pid = second.status()["pid"]
            assert new_pid != pid
            if ending == "signal":
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda: has_ended(pid))
                with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOTCONN):
                    held.read()
        wait_until(lambda: has_ended(pid))
        status = second.status()
        assert status["pid"] == new_pid
        assert second.contents()
        second.umount()
        assert has_ended(new_pid)
        assert list(mount.path.iterdir()) == []
