"""Processes that are stopped and continued, and readers that are killed while they wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from tests.crash.forked import ForkedHome
from tests.mount.changing_account import ChangingAccount, assert_live, read_state, tree_of
from tests.mounts import Home, Mounted
from tests.snapshot.commands import dates, require_whole
from tests.waits import has_ended, wait_until

_MAP = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    sys.stdout.buffer.write(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[:])
"""


@pytest.mark.mount
@pytest.mark.timeout(180)
def test_a_stopped_daemon(account: ChangingAccount, home: ForkedHome) -> None:
    """Readers wait, commands give up with one line, and then everything goes on."""
    url = account.server.url
    with home.mounted(url) as mount:
        before = read_state(mount)
        daemon = mount.ask_status().pid
        mail = next(path for path in before if path.endswith(".eml"))
        os.kill(daemon, signal.SIGSTOP)
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append((mount.path / mail).read_bytes()))
        try:
            reader.start()
            began = time.monotonic()
            commands = {
                name: home.start(name, *arguments)
                for name, arguments in {
                    "status": (mount.path,),
                    "sync": (mount.path,),
                    "freeze": (mount.path,),
                    "thaw": (mount.path,),
                    "prefetch": (mount.path / "Inbox",),
                    "watch": (mount.path,),
                    "snapshot": (mount.path, home.directory / "dest"),
                    "mount": (url, mount.path),
                }.items()
            }
            for name, process in commands.items():
                result = process.result(60)
                assert result.exit_code == (7 if name == "mount" else 10), (name, result)
                assert result.stdout == ""
                assert len(result.stderr.splitlines()) == 1, (name, result)
            assert time.monotonic() - began < 45
            # Those that do not need the mount work.
            assert home.run("mount", url, home.directory, seconds=60).exit_code == 7
            assert not found
        finally:
            os.kill(daemon, signal.SIGCONT)
        reader.join(10)
        assert found == [before[mail][1]]
        account.churn()
        mount.sync()
        assert_live(mount, account, {})
        assert not mount.is_frozen


# A thread of the daemon reads a mail from the mount, past the page cache.
_HALF_DEAD = """
import mmap, os, threading
from pathlib import Path
from jmapfs.daemon.freeze import Freezer
def read():
    path = min(Path(os.environ["MOUNTED"]).rglob("*.eml"))
    os.preadv(os.open(path, os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 4096)], 0)
async def thaw(self, lease_id, actual=Freezer.thaw):
    threading.Thread(target=read).start()
    return await actual(self, lease_id)
Freezer.thaw = thaw
from jmapfs.cli.main import main
main()
"""


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can abort a connection everywhere")
def test_a_killed_daemon_that_cannot_end(account: ChangingAccount, tmp_path: Path) -> None:
    """The kernel makes all programs wait, but umount ends that."""
    home = Home(tmp_path / "home", "alice@example.org", "secret")
    home.variables["MOUNTED"] = str(home.directory / "mnt")
    program, home.program = home.program, (sys.executable, "-c", _HALF_DEAD)
    mount = home.mount(account.server.url, home.directory / "mnt")
    home.program = program
    daemon = mount.ask_status().pid
    before = mount.counts().reads
    account.server.pause()
    mount.thaw()
    wait_until(partial(has_read, mount, before))
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: has_ended(daemon))
    # The main thread has ended, but another one waits in the kernel.
    wait_until(lambda: states_of(daemon) == {"D", "Z"})
    refused = home.run("mount", account.server.url, mount.path)
    assert refused.exit_code == 7
    assert "does not answer" in refused.stderr
    mount.umount()
    account.server.resume()
    assert list(mount.path.iterdir()) == []
    with home.mounted(account.server.url) as again:
        assert tree_of(read_state(again)) == account.tree()


def states_of(pid: int) -> set[str]:
    """Return the states of the threads of a process (proc_pid_stat(5))."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}


def test_a_stopped_snapshot(account: ChangingAccount, home: ForkedHome) -> None:
    """The server may have closed its connections meanwhile."""
    account.control.set_quirks(download_delay=0.05, blob_get=False)
    dest = home.directory / "dest"
    process = home.start("snapshot", "--quiet", account.server.url, dest)
    wait_until(lambda: bool(list(dest.glob(".partial-*/content/*"))))
    process.signal(signal.SIGSTOP)
    other = home.run("snapshot", "--quiet", account.server.url, dest)
    assert other.exit_code == 9, other
    assert f"process {process.pid} is using" in other.stderr
    account.control.set_quirks(download_delay=0.0)
    account.server.restart_on_same_port()
    process.signal(signal.SIGCONT)
    result = process.result()
    assert (result.exit_code, result.stderr) == (0, "")
    [date] = dates(dest)
    require_whole(dest / date)
    assert not list(dest.glob(".partial*"))


@pytest.mark.mount
def test_a_killed_reader_ends_at_once(account: ChangingAccount, home: ForkedHome) -> None:
    """It is blocked in read(2), or by a page fault, while the server does not answer."""
    with home.mounted(account.server.url) as mount:
        mails = sorted((mount.path / "Inbox").glob("*.eml"))
        account.server.pause()
        for command in (["cat"], ["grep", "-c", "x"], [sys.executable, "-c", _MAP]):
            mail = mails.pop()
            before = mount.counts().reads
            with subprocess.Popen([*command, mail], stdout=subprocess.DEVNULL) as reader:
                wait_until(partial(has_read, mount, before))
                time.sleep(0.05)
                began = time.monotonic()
                reader.kill()
                reader.wait(10)
                assert time.monotonic() - began < 1
            # The others are not disturbed.
            assert list(mount.path.iterdir())
        account.server.resume()
        assert mails.pop().read_bytes()


def has_read(mount: Mounted, before: int) -> bool:
    return mount.counts().reads > before
