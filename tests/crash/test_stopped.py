"""Processes that are stopped and continued, and readers that are killed while they wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from tests.crash.forked import ForkedHome
from tests.mount.changing_account import ChangingAccount, assert_live, read_state
from tests.mounts import Mounted
from tests.snapshot.commands import dates, require_whole
from tests.waits import wait_until

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
