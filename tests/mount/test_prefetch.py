"""`jmapfs prefetch` on real mounts: everything asked for is cached, once, or it is said why not."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jmapfs.control.messages import PrefetchRequest
from tests import corpus
from tests.cache.small_disk import needs_root, tmpfs
from tests.cyrus import Cyrus, Message
from tests.mails import new_emails, random_mail
from tests.mounts import Home, Mounted, Result, command
from tests.server import ControlClient, ServerProcess, server_process
from tests.waits import wait_until

pytestmark = pytest.mark.mount

INBOX, WORK, BOTH = 40, 20, 5
ALL = INBOX + WORK
SIZE = 3000


def add(control: ControlClient, numbers: range, *mailboxes: str, size: int = SIZE) -> None:
    contents = (random_mail(number, size) for number in numbers)
    control.add_emails(new_emails(contents, *mailboxes, first=numbers.start))


def fill(control: ControlClient) -> None:
    """Mail in two mailboxes; the first mails of Work are in the inbox, too."""
    for name in ("Inbox", "Work"):
        control.create_mailbox(name, mailbox_id=name)
    add(control, range(INBOX), "Inbox")
    add(control, range(INBOX, INBOX + BOTH), "Work", "Inbox")
    add(control, range(INBOX + BOTH, ALL), "Work")


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with server_process("empty") as server:
        fill(server.control)
        yield server


@pytest.fixture
def plain(home: Home, server: ServerProcess) -> Iterator[Mounted]:
    """A mount of a server that gives mail one by one."""
    server.control.set_quirks(blob_get=False)
    with home.mounted(server.url) as mount:
        yield mount


def prefetch(mount: Mounted, *places: str) -> Result:
    """Run it for places in a mount; for the mountpoint, if none is given."""
    return mount.home.run("prefetch", *(mount.path / place for place in places or ("",)))


def line(fetched: int, there: int, size: str | None = None) -> str:
    kib = SIZE * fetched / 1024
    size = size or (f"{kib:.1f} KiB" if fetched else "0 B")
    return f"{fetched + there} mails are cached: {fetched} fetched ({size}), {there} were there\n"


def assert_cached(result: Result, fetched: int, there: int, size: str | None = None) -> None:
    assert result == Result(0, line(fetched, there, size), "")


def assert_failed(result: Result, exit_code: int, *words: str) -> None:
    assert result.exit_code == exit_code, result
    assert result.stdout == ""
    (text,) = result.stderr.splitlines()
    assert text.startswith("jmapfs: ")
    for word in words:
        assert word in text


def blob_ids(server: ServerProcess, *numbers: int) -> list[str]:
    subjects = {f"Number {number}" for number in numbers}
    return [one.blob_id for one in server.control.dump().emails if one.subject in subjects]


def cached_mails(mount: Mounted) -> int:
    blobs: int = mount.status()["cache"]["blobs"]
    return blobs


def test_each_mail_is_fetched_once(mount: Mounted, server: ServerProcess) -> None:
    before = mount.counts()
    assert_cached(prefetch(mount), ALL, 0)
    done = mount.counts() - before
    assert done.blobs == ALL
    assert done.http["requests"] <= 6
    # It asks the daemon for it: nothing is read, nor even opened.
    assert (done.reads, done.fuse.get("open", 0)) == (0, 0)
    assert set(server.control.counts().blobs.values()) == {1}
    assert cached_mails(mount) == ALL

    before = mount.counts()
    assert_cached(prefetch(mount), 0, ALL)
    command("grep", "-rc", "Subject", mount.path)
    assert sorted(set(mount.contents().values())) == sorted(map(random_mail, range(ALL)))
    done = mount.counts() - before
    assert (done.blobs, done.http["requests"]) == (0, 0)


def test_a_server_without_blob_get(plain: Mounted, server: ServerProcess) -> None:
    # So long that they meet on the server.
    server.control.set_quirks(download_delay=0.1)
    assert_cached(prefetch(plain), ALL, 0)
    counts = server.control.counts()
    assert set(counts.blobs.values()) == {1}
    # Two requests are left for reads.
    assert counts.max_concurrent == 8 - 2


def test_parts_of_a_mount(mount: Mounted, tmp_path: Path) -> None:
    first = min((mount.path / "Work").iterdir()).name
    assert mount.home.run("prefetch", mount.path / "Work" / first).stdout == (
        "1 mail is cached: 1 fetched (2.9 KiB), 0 were there\n"
    )
    assert_cached(prefetch(mount, "Work"), WORK - 1, 1)
    assert mount.counts().blobs == WORK
    # A mail in both directories is one file, and counts once; so does a path that is given twice.
    assert_cached(prefetch(mount, "Inbox", "", f"Work/{first}"), INBOX, WORK)
    # However it is named.
    link = tmp_path / "link"
    link.symlink_to(mount.path / "Inbox")
    assert_cached(mount.home.run("prefetch", link, mount.path / "Work" / ".."), 0, ALL)
    assert mount.counts().blobs == ALL


def test_large_mails(mount: Mounted, server: ServerProcess) -> None:
    add(server.control, range(ALL, ALL + 3), "Work", size=1_500_000)
    mount.sync()
    assert_cached(prefetch(mount), ALL + 3, 0, "4.5 MiB")
    server.stop()
    assert sorted(set(mount.contents().values())) == sorted(
        [
            *map(random_mail, range(ALL)),
            *(random_mail(number, 1_500_000) for number in range(ALL, ALL + 3)),
        ]
    )


def test_an_empty_directory(mount: Mounted, server: ServerProcess) -> None:
    server.control.create_mailbox("Empty")
    mount.sync()
    assert_cached(prefetch(mount, "Empty"), 0, 0)


def test_an_interrupted_prefetch_can_be_repeated(plain: Mounted, server: ServerProcess) -> None:
    server.control.set_quirks(download_delay=0.5)
    process = subprocess.Popen(
        [*plain.home.program, "prefetch", str(plain.path)],
        env=plain.home.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: plain.counts().blobs >= 3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout) == (130, b"")
    assert stderr.split() == [b"jmapfs:", b"interrupted"]
    # Only the request that was under way is completed.
    came = [-1]

    def quiet() -> bool:
        came.append(plain.counts().blobs)
        return len(came) > 120 and len(set(came[-120:])) == 1

    wait_until(quiet, seconds=30)
    assert 3 <= came[-1] < ALL
    server.control.set_quirks(download_delay=0.0)
    assert_cached(prefetch(plain), ALL - came[-1], came[-1])
    # Nothing was fetched twice.
    assert set(server.control.counts().blobs.values()) == {1}


def test_prefetch_without_the_server(mount: Mounted, server: ServerProcess) -> None:
    assert_cached(prefetch(mount, "Work"), WORK, 0)
    server.stop()
    # Whatever it finds out: that there is no answer, or that it is offline.
    for _ in range(2):
        assert_failed(prefetch(mount), 5, f"{WORK} of {ALL} mails are cached, {INBOX} not: ")
    wait_until(lambda: not mount.status()["online"])
    assert_failed(prefetch(mount, "Inbox"), 5, f"{BOTH} of {INBOX + BOTH} mails", "offline")
    assert_cached(prefetch(mount, "Work"), 0, WORK)


def test_a_server_that_hangs(impatient: Home, server: ServerProcess) -> None:
    with impatient.mounted(server.url) as mount:
        assert_cached(prefetch(mount, "Work"), WORK, 0)
        server.pause()
        try:
            result = prefetch(mount)
        finally:
            server.resume()
        assert_failed(result, 5, f"{WORK} of {ALL} mails are cached, {INBOX} not: ")
        wait_until(lambda: bool(mount.status()["online"]))
        # Some of it may have come at the last moment.
        assert prefetch(mount).stdout.startswith(f"{ALL} mails are cached: ")
        assert cached_mails(mount) == ALL


def test_prefetch_with_a_wrong_password(mount: Mounted, server: ServerProcess) -> None:
    server.control.set_credentials("alice@example.org", "another", None)
    assert_failed(prefetch(mount), 4, f"0 of {ALL} mails are cached")


def test_a_mail_that_cannot_be_downloaded(mount: Mounted, server: ServerProcess) -> None:
    bad = blob_ids(server, 3, 50)
    server.control.set_quirks(
        download_fault="not-found", blob_fault="not-found", fault_blob_ids=bad
    )
    assert_failed(prefetch(mount), 6, f"{ALL - 2} of {ALL} mails are cached, 2 not: ")
    assert cached_mails(mount) == ALL - 2
    server.control.reset_quirks()
    assert_cached(prefetch(mount), 2, ALL - 2)


@pytest.mark.parametrize("batches", [True, False])
def test_a_mail_that_times_out(impatient: Home, server: ServerProcess, *, batches: bool) -> None:
    server.control.set_quirks(
        blob_get=batches,
        download_fault="stall",
        blob_fault="truncated",
        fault_blob_ids=blob_ids(server, 3),
    )
    with impatient.mounted(server.url) as mount:
        assert_failed(prefetch(mount), 5, f"{ALL - 1} of {ALL} mails are cached, 1 not: ")
        assert cached_mails(mount) == ALL - 1


@pytest.mark.parametrize("offset", [-1000, 5000])
def test_wrong_sizes_are_corrected(home: Home, server: ServerProcess, offset: int) -> None:
    server.control.set_quirks(size_offsets={"*": offset})
    with home.mounted(server.url) as mount:
        size = f"{ALL * (SIZE + offset) / 1024:.1f} KiB"
        assert_cached(prefetch(mount), ALL, 0, size)
        server.stop()
        # The first read does not have to find out.
        assert {status.st_size for status in mount.files().values()} == {SIZE}
        assert sorted(set(mount.contents().values())) == sorted(map(random_mail, range(ALL)))


def test_a_cache_that_is_too_small(home: Home, server: ServerProcess) -> None:
    # Each mail takes 1 KiB beside its content.
    with home.mounted(server.url, "--cache-size", "200K") as mount:
        assert_failed(prefetch(mount), 8, "235.8 KiB", "193.8 KiB", "--cache-size", str(mount.path))
        assert mount.counts().blobs == 0
        assert_cached(prefetch(mount, "Inbox"), INBOX + BOTH, 0)
        # Wanted mail that is cached is not evicted for the rest.
        assert_cached(prefetch(mount, "Work"), WORK - BOTH, BOTH)
        server.stop()
        assert len(list((mount.path / "Work").iterdir())) == WORK
        for path in (mount.path / "Work").iterdir():
            assert len(path.read_bytes()) == SIZE
    with home.mounted(server.url, "--cache-size", "300K") as mount:
        assert_failed(prefetch(mount), 5)


def test_prefetch_without_a_disk_cache(home: Home, server: ServerProcess) -> None:
    with home.mounted(server.url, "--cache-size", "0") as mount:
        assert_failed(prefetch(mount), 8, "--cache-size", str(mount.path))
        assert mount.counts().blobs == 0


# The disk seems to have space until the second measurement.
FULL_LATER = """
from jmapfs.cache.disk_cache import DiskCache
capacity, counted = DiskCache.capacity, []
def at_first_unlimited(self):
    counted.append(self)
    return self.usable_bytes if len(counted) == 1 else capacity(self)
DiskCache.capacity = at_first_unlimited
from jmapfs.daemon import commands
commands._PREFETCH_SECONDS = 0.1
from jmapfs.cli.main import main
main()
"""


def fill_disk(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


@needs_root
def test_a_disk_that_is_full(home: Home, server: ServerProcess) -> None:
    add(server.control, range(ALL, ALL + 300), "Work", size=60_000)
    with home.mounted(server.url):
        pass
    (account,) = home.cache.iterdir()
    (account / "blobs").rename(account / "others")
    with tmpfs(account / "blobs", "5m"):
        with home.mounted(server.url) as mount:
            # It is known at once that there is no space.
            assert_failed(prefetch(mount), 8, "MiB of mail are wanted", "free space on its disk")
            assert mount.counts().blobs == 0
            assert_cached(prefetch(mount, "Inbox"), INBOX + BOTH, 0)
            fill_disk(account / "blobs" / "other")
            # What is cached is cached, although the disk is full now.
            assert_cached(prefetch(mount, "Inbox"), 0, INBOX + BOTH)
        (account / "blobs" / "other").unlink()

        # Another program fills the disk meanwhile. The rest is not downloaded then.
        home.program = (sys.executable, "-c", FULL_LATER)
        with home.mounted(server.url) as mount:
            result = prefetch(mount)
            assert_failed(result, 8, f"of {ALL + 300} mails are cached")
            # Mail of the last step may still arrive, and evict other mail.
            (count,) = re.findall(r"(\d+) of ", result.stderr)
            assert 0 < int(count) < ALL + 300
            assert cached_mails(mount) < ALL + 300
            assert mount.counts().blobs < ALL + 300


def test_a_damaged_cache(mount: Mounted, server: ServerProcess) -> None:
    assert_cached(prefetch(mount), ALL, 0)
    database = next(mount.home.cache.glob("*/blobs/blobs.sqlite"))
    command("sqlite3", database, "UPDATE content SET data = zeroblob(9) WHERE number IN (3, 7)")
    assert_cached(prefetch(mount), 2, ALL - 2)
    server.stop()
    assert sorted(set(mount.contents().values())) == sorted(map(random_mail, range(ALL)))


def test_a_frozen_mount(mount: Mounted, server: ServerProcess) -> None:
    mount.freeze(60)
    gone = [one.id for one in server.control.dump().emails if one.subject == "Number 3"]
    server.control.destroy_emails(gone)
    add(server.control, range(ALL, ALL + 3), "Work")
    mount.sync()
    # Mail in the frozen tree is wanted, even if the server has deleted it.
    assert_failed(prefetch(mount), 6, f"{ALL - 1} of {ALL} mails are cached, 1 not: ", "blob")
    mount.thaw()
    assert_cached(prefetch(mount), 3, ALL - 1)


def test_inodes_that_are_not_in_the_tree(mount: Mounted) -> None:
    """They are no longer in the tree, or never were."""
    inodes = [status.st_ino for status in mount.files().values()]
    answer = mount.ask(PrefetchRequest([*inodes[:10], 12345, (1 << 63) - 1]))
    assert answer.gone == [12345, (1 << 63) - 1]
    assert not answer.left
    assert mount.counts().blobs == 10


def test_several_accounts_and_mounts(home: Home, server: ServerProcess, tmp_path: Path) -> None:
    server.control.add_account("Ateam", "The Team")
    with closing(server.control.account("Ateam")) as team:
        fill(team)
    other = tmp_path / "other"
    options = ("--cache-dir", tmp_path / "elsewhere")
    with (
        home.mounted(server.url, "--all-accounts") as mount,
        home.mounted(server.url, *options, path=other) as second,
    ):
        assert_cached(prefetch(mount, "The-Team"), ALL, 0)
        assert [one["http"]["blobs"] for one in mount.status()["accounts"]] == [0, ALL]
        assert_cached(prefetch(mount, "The-Team/Work", "alice@example.org/Work"), WORK, WORK)
        # The other one has a cache of its own.
        work = mount.path / "alice@example.org" / "Work"
        assert_cached(home.run("prefetch", mount.path, second.path / "Work", work), 60, 80)
        server.stop()
        for path in sorted(mount.path.rglob("*.eml")):
            assert len(path.read_bytes()) == SIZE
        # One of them is offline and not complete: the others are all the same.
        assert_failed(home.run("prefetch", second.path, mount.path), 5, "140 of 180 mails")


def test_paths_that_are_refused(mount: Mounted, tmp_path: Path) -> None:
    home = mount.home
    assert_failed(home.run("prefetch", tmp_path), 10, str(tmp_path), "not mounted")
    assert_failed(home.run("prefetch", mount.path.parent), 10)
    assert_failed(home.run("prefetch", mount.path, tmp_path / "nothing"), 10)
    assert_failed(prefetch(mount, "Nothing"), 2, "Nothing", "No such file")
    assert_failed(prefetch(mount, "Inbox", "Work/nothing.eml"), 2, "nothing.eml")
    assert_failed(prefetch(mount, ".jmapfs.json"), 2, ".jmapfs.json")
    assert home.run("prefetch").exit_code == 2
    assert mount.counts().blobs == 0
    os.kill(mount.status()["pid"], signal.SIGKILL)
    assert_failed(prefetch(mount), 10, str(mount.path))
    assert_failed(prefetch(mount, "Inbox"), 10, str(mount.path))


def test_a_progress_bar_on_a_terminal(plain: Mounted, server: ServerProcess) -> None:
    server.control.set_quirks(download_delay=0.2)
    assert_cached(prefetch(plain, "Work"), WORK, 0)
    shown = _on_a_terminal(plain.home, "prefetch", plain.path)
    assert f"{WORK}/{WORK} mails" in shown
    assert f"{INBOX}/{INBOX} mails" in shown
    assert re.search(
        r"fetching mail .*[1-9]\d*/40 mails .*KiB/117\.2 KiB .*KiB/s .*\d:\d\d:\d\d", shown
    )
    assert shown.endswith(line(INBOX, WORK).replace("\n", "\r\n"))


def _on_a_terminal(home: Home, *arguments: str | Path) -> str:
    """Return what a command shows on a terminal."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*home.program, *map(str, arguments)],
            env=home.environment | {"TERM": "xterm", "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    shown = b""
    try:
        while piece := _read(ours):
            shown += piece
    finally:
        os.close(ours)
    assert process.wait(60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def _read(descriptor: int) -> bytes:
    # Linux answers EIO when the other end is closed.
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""


def test_cyrus_before_a_flight(private_cyrus: Cyrus, tmp_path: Path) -> None:
    account = private_cyrus.add_user("alice")
    account.create_mailbox("Work")
    mails = list(dict.fromkeys([*corpus.mails(300), *corpus.hostile_mails()]))
    for name, some in (("INBOX", mails[::2]), ("Work", mails[1::2])):
        account.fill(
            name,
            [
                Message(one, received=datetime(2024, 3, 1, tzinfo=UTC) + timedelta(minutes=n))
                for n, one in enumerate(some)
            ],
        )
    home = Home(tmp_path, account.name, account.password)
    with home.mounted(account.url) as mount:
        before = mount.counts()
        result = prefetch(mount)
        assert result.exit_code == 0, result
        assert f"{len(mails)} fetched" in result.stdout
        done = mount.counts() - before
        assert done.blobs == len(mails)
        assert done.http["requests"] < 20
        before = mount.counts()
        command("grep", "-rc", "^Subject", mount.path)
        assert (mount.counts() - before).blobs == 0
    private_cyrus.stop()
    with home.mounted(account.url) as mount:
        assert "offline" in mount.result.stderr
        assert prefetch(mount).exit_code == 0
        assert sorted(mount.contents().values()) == sorted(mails)
