"""The life of a mount: read-only, ended in order, and honest when it dies."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jmapfs.control.mounts import peer, require_mount
from jmapfs.control.socket_client import connect
from tests.handles import handle_of, open_handle
from tests.mounts import Home, Mounted, command
from tests.server import ServerProcess, server_process
from tests.waits import has_ended, wait_until

pytestmark = pytest.mark.mount


def a_mail(mount: Mounted) -> Path:
    return mount.path / min(mount.files())


def failure(attempt: Callable[[], object]) -> int | None:
    """Return the errno that an attempt fails with; None where it does not."""
    try:
        attempt()
    except OSError as error:
        return error.errno
    return None


def test_nothing_can_be_written(mount: Mounted, server: ServerProcess) -> None:
    mail = a_mail(mount)
    attempts: dict[str, Callable[[], object]] = {
        "write": lambda: mail.open("r+b"),
        "create": (mail.parent / "new").touch,
        "unlink": mail.unlink,
        "rename": lambda: mail.rename(mail.parent / "other"),
        "chmod": lambda: mail.chmod(0o600),
        "chown": lambda: os.chown(mail, 1, 1),
        "utime": lambda: os.utime(mail),
        "truncate": lambda: os.truncate(mail, 0),
        "mkdir": (mail.parent / "directory").mkdir,
        "rmdir": mail.parent.rmdir,
        "link": lambda: os.link(mail, mail.parent / "link"),
        "symlink": lambda: (mail.parent / "link").symlink_to(mail),
        "setxattr": lambda: os.setxattr(mail, "user.x", b""),
    }
    outcomes = {name: failure(attempt) for name, attempt in attempts.items()}
    assert outcomes == dict.fromkeys(attempts, errno.EROFS)
    methods = server.control.counts().methods
    assert not [name for name in methods if name.endswith(("/set", "/import", "/copy"))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(home: Home, server: ServerProcess, number: int) -> None:
    with home.mounted(server.url) as mount:
        pid = mount.status()["pid"]
        os.kill(pid, number)
        wait_until(lambda: has_ended(pid))
        assert list(mount.path.iterdir()) == []


def test_a_mount_in_the_foreground(home: Home, server: ServerProcess, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    arguments = [*home.program, "mount", "-f", server.url, str(mountpoint)]
    with subprocess.Popen(
        arguments, env=home.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        # The message comes a moment after the mount.
        assert any("is mounted" in line for line in process.stderr)
        assert (mountpoint / ".jmapfs.json").exists()
        process.send_signal(signal.SIGINT)
        log = process.stderr.read()
        assert process.wait() == 0
    assert "Traceback" not in log


def test_umount_returns_when_the_daemon_has_ended(home: Home, server: ServerProcess) -> None:
    with home.mounted(server.url) as mount:
        pid = mount.status()["pid"]
        mount.umount()
        assert has_ended(pid)
        assert list(mount.path.iterdir()) == []


def test_umount_does_not_wait_for_the_network(home: Home, server: ServerProcess) -> None:
    """A READ of a program that was killed would wait for half a minute."""
    with home.mounted(server.url) as mount:
        mail = a_mail(mount)
        server.pause()
        with subprocess.Popen(["cat", mail], stdout=subprocess.DEVNULL) as reader:
            wait_until(lambda: mount.counts().reads > 0)
            reader.kill()
        daemon = mount.ask_status().pid
        began = time.monotonic()
        # The kernel closes the file a moment later.
        wait_until(lambda: home.run("umount", mount.path).exit_code == 0)
        assert has_ended(daemon)
        assert time.monotonic() - began < 15


OTHER_VERSION = """
import time
from jmapfs.daemon import daemon
from jmapfs.daemon.commands import Commands
async def refuse(self, request):
    raise NotImplementedError
Commands.answer = refuse
run_daemon = daemon.run_daemon
def end_slowly(*arguments):
    run_daemon(*arguments)
    time.sleep(2)
daemon.run_daemon = end_slowly
from jmapfs.cli.main import main
main()
"""


def test_umount_waits_for_a_daemon_of_another_version(home: Home, server: ServerProcess) -> None:
    other = Home(home.directory, home.username, home.password)
    other.program = (sys.executable, "-c", OTHER_VERSION)
    mount = other.mount(server.url, home.directory / "mnt")
    with connect(require_mount(mount.path), timeout=10) as connection:
        pid = peer(connection).pid
    # umount needs no answer to know the process.
    assert home.run("status", mount.path).exit_code == 1
    assert home.run("umount", mount.path).exit_code == 0
    assert has_ended(pid)


def test_umount_of_a_busy_mount_is_refused(home: Home, mount: Mounted) -> None:
    with a_mail(mount).open("rb"):
        result = home.run("umount", mount.path)
        assert result.exit_code == 9
        assert len(result.stderr.splitlines()) == 1
        assert mount.status()["emails"] > 0


def test_kill_9_leaves_enotconn_until_the_next_mount(
    home: Home, server: ServerProcess, tmp_path: Path
) -> None:
    with home.mounted(server.url) as mount:
        before = mount.contents()
        target = tmp_path / "copy"
        command("rsync", "-a", f"{mount.path}/", target)
        # Content that is only in its memory is lost.
        inodes = {status.st_ino for status in mount.files().values()}
        wait_until(lambda: mount.ask_status().accounts[0].cache.blobs == len(inodes))
        os.kill(mount.status()["pid"], signal.SIGKILL)
        # While the kernel takes the connection down, requests that are under way are aborted.
        wait_until(lambda: failure(lambda: list(mount.path.iterdir())) == errno.ENOTCONN)

        result = subprocess.run(
            ["rsync", "-a", "--delete", f"{mount.path}/", target], check=False, capture_output=True
        )
        assert result.returncode != 0
        assert len(list(target.rglob("*.eml"))) == len(before)
        assert home.run("status", mount.path).exit_code == 10
        statuses = json.loads(home.run("status", "--json").stdout)
        (dead,) = [one for one in statuses if one["mountpoint"] == str(mount.path)]
        assert "has died" in dead["error"]

        # What cannot be mounted does not leave an empty directory in place of a dead mount.
        wrong = Home(home.directory, home.username, "wrong")
        assert wrong.run("mount", server.url, mount.path).exit_code == 4
        assert failure(lambda: list(mount.path.iterdir())) == errno.ENOTCONN

        again = home.mount(server.url, mount.path)
        assert "clearing the mount of a daemon that died" in again.result.stderr
        assert again.contents() == before
        assert again.counts().blobs == 0


def test_umount_clears_a_dead_mount(home: Home, server: ServerProcess) -> None:
    with home.mounted(server.url) as mount:
        os.kill(mount.status()["pid"], signal.SIGKILL)
        wait_until(lambda: failure(lambda: os.statvfs(mount.path)) == errno.ENOTCONN)
        mount.umount()
        assert list(mount.path.iterdir()) == []


BUG = """
import sys
from jmapfs.tree.tree import Tree
lookup = Tree.lookup
def broken(self, parent, name):
    if name == b"bug":
        raise ZeroDivisionError("on purpose")
    return lookup(self, parent, name)
Tree.lookup = broken
from jmapfs.cli.main import main
main()
"""


def test_a_bug_in_a_handler_is_logged_and_eio(home: Home, server: ServerProcess) -> None:
    home.program = (sys.executable, "-c", BUG)
    mount = home.mount(server.url, home.directory / "mnt")
    try:
        for _ in range(3):
            with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
                (mount.path / "bug").stat()
        assert home.log().count("ZeroDivisionError: on purpose") == 3
        assert a_mail(mount).read_bytes()
    finally:
        mount.clear()


FATAL_BUG = """
from jmapfs.daemon.freeze import Freezer
async def broken(self, lease_id):
    raise BaseException("on purpose")
Freezer.thaw = broken
from jmapfs.cli.main import main
main()
"""


def test_a_daemon_that_dies_of_a_bug_leaves_enotconn(home: Home, server: ServerProcess) -> None:
    home.program = (sys.executable, "-c", FATAL_BUG)
    mount = home.mount(server.url, home.directory / "mnt")
    try:
        pid = mount.status()["pid"]
        assert home.run("thaw", mount.path).exit_code != 0
        wait_until(lambda: has_ended(pid))
        assert failure(lambda: list(mount.path.iterdir())) == errno.ENOTCONN
        assert "BaseException: on purpose" in home.log()
    finally:
        mount.clear()


def test_status(home: Home, mount: Mounted, server: ServerProcess) -> None:
    status = mount.status()
    dump = server.control.dump()
    assert status["account"] == "alice@example.org"
    assert status["online"] is True
    assert status["emails"] == len(dump.emails)
    assert status["mailboxes"] == len(dump.mailboxes)
    assert status["mountpoint"] == str(mount.path)
    assert {"bytes", "limit", "blobs"} <= status["cache"].keys()
    content = a_mail(mount).read_bytes()
    after = mount.status()
    assert (after["http"]["blobs"], after["http"]["bytes"]) == (1, len(content))
    assert after["fuse"]["open"] == 1
    assert after["fuse"]["read"] >= 1
    about = json.loads((mount.path / ".jmapfs.json").read_bytes())
    for name in ("account", "state", "emails", "mailboxes", "online"):
        assert about[name] == status[name]
    text = home.run("status", mount.path).stdout
    assert str(mount.path) in text
    assert "alice@example.org" in text


def test_options(home: Home, server: ServerProcess) -> None:
    options = ("-o", "uid=12,gid=34", "-o", "umask=022,allow_other,fsname=my,mail")
    result = home.run("mount", *options, server.url, home.directory / "run")
    assert result.exit_code == 2  # `mail` is no option
    with home.mounted(server.url, "-o", "uid=12,gid=34", "-o", "umask=022,allow_other") as mount:
        status = a_mail(mount).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12, 34, 0o444)
        assert a_mail(mount).parent.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may open file handles")
@pytest.mark.parametrize("option", [(), ("--all-accounts",)])
def test_file_handles_stay_valid(
    home: Home, server: ServerProcess, option: tuple[str, ...]
) -> None:
    """A new mount has forgotten all inodes, like the kernel after `drop_caches`."""
    with home.mounted(server.url, *option) as mount:
        mail = max(mount.path.rglob("*.eml"), key=lambda path: len(path.parts))
        directory = mail.parent
        assert len(directory.relative_to(mount.path).parts) > 1
        content, inode = mail.read_bytes(), directory.stat().st_ino
        names = {path.name for path in directory.iterdir()}
        handles = handle_of(mail), handle_of(directory)
    with home.mounted(server.url, *option) as mount:
        opened = [open_handle(mount.path, handle) for handle in handles]
        try:
            assert os.pread(opened[0], len(content) + 1, 0) == content
            assert os.fstat(opened[1]).st_ino == inode
            # The kernel has found all directories above it.
            assert Path(f"/proc/self/fd/{opened[1]}").readlink() == directory
            assert set(os.listdir(opened[1])) == names  # noqa: PTH208 - a descriptor
        finally:
            for descriptor in opened:
                os.close(descriptor)


def test_an_empty_account(home: Home) -> None:
    with server_process("empty") as server, home.mounted(server.url) as mount:
        assert mount.files() == {}
        assert (mount.path / ".jmapfs.json").exists()


def test_a_second_mount_of_an_account_is_read_only(
    home: Home, mount: Mounted, server: ServerProcess
) -> None:
    with home.mounted(server.url, path=home.directory / "second") as second:
        assert second.contents() == mount.contents()
        assert "this mount only reads the index" in second.result.stderr


def test_the_file_system_statistics(mount: Mounted) -> None:
    files = mount.files()
    distinct = {status.st_ino: status.st_size for status in files.values()}
    statistics = os.statvfs(mount.path)
    assert statistics.f_blocks * statistics.f_frsize >= sum(distinct.values())
    assert statistics.f_bavail == 0
    assert statistics.f_flag & os.ST_RDONLY
