"""Few file descriptors, many readers, a very large mail, and a very large mailbox."""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.forked import ForkedHome
from tests.mails import random_mail
from tests.mount.changing_account import ChangingAccount, read_state, tree_of
from tests.mounts import Result, command
from tests.server import server_process
from tests.snapshot.commands import require_whole

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]

DESCRIPTORS = 64
READERS = 64
LARGE_BYTES = 20_000_000
VERY_LARGE_BYTES = 100_000_000
FEW_MAILS = 5_000
MAILS = 100_000
MIB = 1 << 20


@contextmanager
def few_descriptors(pid: int, count: int = DESCRIPTORS) -> Iterator[None]:
    """Limit the open files of a process, and of those that it starts, within the context."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peak_of(pid: int) -> int:
    """Return the largest resident memory of a process so far, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    # It has just ended.
    return 0


def test_few_file_descriptors(account: ChangingAccount, home: ForkedHome) -> None:
    """With 64 readers, commands, and a snapshot, each of which has 64 descriptors."""
    url, dest = account.server.url, home.directory / "dest"
    for number in range(3):
        account.control.add_email(random_mail(number, 1_500_000), [account.ids["Work"]])
    with few_descriptors(home.forker.pid), home.mounted(url) as mount:
        files = sorted(mount.path.rglob("*.eml"))
        with ThreadPoolExecutor(READERS) as readers:
            found = Counter(readers.map(digest_of, files, timeout=60))
        truth: Counter[str] = sum(account.tree().values(), Counter())
        assert found == truth
        assert home.run("prefetch", mount.path).exit_code == 0
        for source in (url, mount.path):
            account.churn()
            mount.sync()
            assert home.run("snapshot", "--quiet", source, dest) == Result(0, "", "")
            require_whole(dest / "latest")
        assert home.run("verify", "--quiet", dest) == Result(0, "", "")
        assert tree_of(read_state(mount)) == account.tree()
    assert "Traceback" not in home.log()


@pytest.mark.parametrize(
    "size", [LARGE_BYTES, pytest.param(VERY_LARGE_BYTES, marks=pytest.mark.long)]
)
def test_a_very_large_mail(account: ChangingAccount, home: ForkedHome, size: int) -> None:
    """Several programs read it at the same time, and a snapshot copies it, in little memory."""
    content = random_mail(1, size)
    account.control.add_email(content, [account.ids["Work"]])
    digest = hashlib.sha256(content).hexdigest()
    del content
    url, dest = account.server.url, home.directory / "dest"
    with home.mounted(url) as mount:
        daemon = mount.ask_status().pid
        before = peak_of(daemon)
        mail = max((mount.path / "Work").glob("*.eml"), key=lambda path: path.stat().st_size)
        with ThreadPoolExecutor(4) as readers:
            assert set(readers.map(digest_of, [mail] * 4)) == {digest}
        assert mount.counts().blobs == 1
        memory = peak_of(daemon) - before
        print("memory of the daemon:", memory // MIB, "MiB")
        assert memory < 16 * MIB
    process = home.start("snapshot", "--quiet", url, dest)
    peak = 0
    while not process.ended(0.02):
        peak = max(peak, peak_of(process.pid))
    assert process.result() == Result(0, "", "")
    print("memory of the snapshot:", peak // MIB, "MiB")
    assert peak < 100 * MIB
    [saved] = [path for path in dest.rglob("*.eml") if path.stat().st_size == size]
    assert digest_of(saved) == digest


@pytest.mark.parametrize(
    "count",
    [
        FEW_MAILS,
        pytest.param(MAILS, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_a_very_large_mailbox(home: ForkedHome, count: int) -> None:
    """Listings are fast, a second one is faster, and a snapshot lists without downloading."""
    with server_process(f"mailbox:{count}") as server:
        began = time.monotonic()
        with home.mounted(server.url) as mount:
            listed = time.monotonic() - began
            daemon = mount.ask_status().pid
            inbox = mount.path / "Inbox"
            seconds = []
            for _ in range(2):
                began = time.monotonic()
                names = [entry.name for entry in os.scandir(inbox)]
                assert len(names) == count
                assert names == sorted(names)
                seconds.append(time.monotonic() - began)
            began = time.monotonic()
            command("find", mount.path, "-name", "*.eml", "-size", "-1k")
            seconds.append(time.monotonic() - began)
            memory = peak_of(daemon)
            assert mount.counts().blobs == 0
            print(
                f"{count} mails: first listing {listed:.1f} s, scandir {seconds[0]:.2f} and"
                f" {seconds[1]:.2f} s, find {seconds[2]:.2f} s, memory {memory // MIB} MiB"
            )
            # Per mail: 2 ms for the account, 50 µs for a listing, and 1 KiB of memory.
            assert listed < 5 + 0.002 * count
            assert max(seconds) < 3 + 0.00005 * count
            assert memory < 150 * MIB + 1024 * count
