"""A server that sends other bytes than the mail, with correct framing: no wrong byte is served.

Each test is one row of a table: which routes to content the server has, and which of them lie. In
one mount, it tells every lie to every consumer. The digests that Blob/get offers stay true.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.mails import identified_mail, new_emails
from tests.mount.test_content import read_soon
from tests.mounts import Home, Mounted
from tests.server import ServerProcess, server_process
from tests.waits import wait_until

pytestmark = pytest.mark.mount

LIES = ("html", "empty", "short", "long", "other-mail")
SMALL, LARGE = 3000, 1_200_000
MANY = 10

# The mailboxes of each lie, and the number and size of their mails.
CONSUMERS = {"one": (1, SMALL), "ahead": (MANY, SMALL), "prefetch": (4, SMALL), "large": (2, LARGE)}


@dataclass(frozen=True)
class Row:
    """A row of the table: what the server has, and on which routes it lies."""

    routes: list[str]
    quirks: dict[str, Any] = field(default_factory=dict)

    @property
    def is_recoverable(self) -> bool:
        """Whether another route tells the truth: then every read must succeed."""
        return len(self.routes) == 1 and self.quirks.get("blob_get", True)


ROWS = {
    "the only route lies": Row(["download"], {"blob_get": False}),
    "download lies": Row(["download"], {"digests": []}),
    "Blob/get lies": Row(["blob-get"], {"digests": []}),
    "download lies, digests": Row(["download"]),
    "Blob/get lies, digests": Row(["blob-get"]),
    "both lie, digests": Row(["download", "blob-get"]),
    "SHA-1 ids, the only route lies": Row(["download"], {"blob_get": False, "sha1_blob_ids": True}),
    "SHA-1 ids, download lies": Row(["download"], {"sha1_blob_ids": True}),
    "SHA-1 ids, Blob/get lies": Row(["blob-get"], {"sha1_blob_ids": True}),
    "SHA-1 ids, both lie": Row(["download", "blob-get"], {"sha1_blob_ids": True, "digests": []}),
}


@dataclass
class Account:
    """An account that has a mailbox for each lie and consumer, and the content of its files."""

    server: ServerProcess
    contents: dict[str, list[bytes]] = field(default_factory=dict)

    def fill(self) -> None:
        """Create the mail. All sizes differ: another mail has another length."""
        number = 0
        for lie in (*LIES, "once"):
            for consumer, (count, size) in CONSUMERS.items():
                name = f"{lie}-{consumer}"
                mails = [identified_mail(n, size + 7 * n) for n in range(number, number + count)]
                box = self.server.control.create_mailbox(name)
                self.server.control.add_emails(new_emails(mails, box, first=number))
                self.contents[name] = mails
                number += count

    def lie(self, lie: str | None, row: Row, count: int = -1) -> None:
        # Without a digest, only the Message-ID tells another mail of equal size from the right one.
        self.server.control.set_quirks(
            lie=lie,
            lie_routes=row.routes,
            lie_count=count,
            lie_equal_size=lie in {"html", "other-mail"},
        )

    def files(self, mount: Mounted, name: str) -> list[tuple[Path, bytes]]:
        """Return the files of a mailbox with their content."""
        paths = sorted((mount.path / name).iterdir())
        assert len(paths) == len(self.contents[name])
        return list(zip(paths, self.contents[name], strict=True))

    def all_files(self, mount: Mounted) -> Iterator[tuple[Path, bytes]]:
        for name in self.contents:
            yield from self.files(mount, name)


def read_page_cache(path: Path) -> bytes:
    return path.read_bytes()


def read_direct(path: Path) -> bytes:
    """Read from the daemon, not from the page cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, LARGE + SMALL) as buffer:
            length = os.preadv(descriptor, [buffer], 0)
            while count := os.preadv(descriptor, [memoryview(buffer)[length:]], length):
                length += count
            return buffer[:length]
    finally:
        os.close(descriptor)


def read_after_drop(path: Path) -> bytes:
    """Read after the kernel has dropped its pages of the file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return path.read_bytes()


WAYS: tuple[Callable[[Path], bytes], ...] = (read_page_cache, read_direct, read_after_drop)


def is_served(path: Path, expected: bytes, read: Callable[[Path], bytes] = read_page_cache) -> bool:
    """Read a file: it must be right, or fail with EIO. Return whether it could be read."""
    try:
        content = read(path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    assert content == expected, (path, len(content), len(expected), content[:60])
    return True


def read_everything(account: Account, mount: Mounted, row: Row, lie: str) -> None:
    """Have each consumer read its mailbox while the server lies."""
    for consumer in CONSUMERS:
        name = f"{lie}-{consumer}"
        if consumer == "prefetch":
            result = mount.home.run("prefetch", mount.path / name)
            assert result.exit_code == (0 if row.is_recoverable else 6), result
            if not row.is_recoverable:
                assert f"{name}/" in result.stderr
        for path, expected in account.files(mount, name):
            served = [is_served(path, expected, read) for read in WAYS]
            assert served == [row.is_recoverable] * len(WAYS), (path, served)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_no_wrong_byte_is_served_or_kept(home: Home, row: Row) -> None:
    with server_process("empty", **row.quirks) as server:
        account = Account(server)
        account.fill()
        with home.mounted(server.url) as mount:
            for lie in LIES:
                account.lie(lie, row)
                read_everything(account, mount, row, lie)
            # A lie that is told once: the second attempt must find it.
            for consumer, lie in zip(CONSUMERS, LIES, strict=False):
                account.lie(lie, row, count=1)
                for path, expected in account.files(mount, f"once-{consumer}"):
                    is_served(path, expected)
            account.lie(None, row)
            # Half of the mailboxes: the caches have what the lies left for the others.
            for name in list(account.contents)[::2]:
                for path, expected in account.files(mount, name):
                    assert read_soon(path) == expected
        server.control.save(server._saved)
        server.stop()
        with home.mounted(server.url) as mount:
            served = [is_served(path, expected) for path, expected in account.all_files(mount)]
            assert any(served)
            server.restart_on_same_port()
            wait_until(lambda: mount.status()["online"], seconds=90)
            for path, expected in account.all_files(mount):
                assert read_soon(path) == expected
                assert path.stat().st_size == len(expected)
