"""The first listing of an account on Cyrus on loopback, in emails per second.

Measured twice: the synchronizer alone, in this process, from an empty index until it is up to date;
and `jmapfs mount` with an empty cache until `ls` returns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import trio

from jmapfs.index.database import IndexDatabase
from jmapfs.jmap.client import connect
from jmapfs.jmap.credentials import BasicCredentials
from jmapfs.sync.synchronizer import Synchronizer
from tests.bench.figures import Figure, Target
from tests.bench.harness import bench_home, timed_mount, unmount
from tests.cyrus import Account, Message, running_cyrus

_DEADLINE_SECONDS = 300
_START = datetime(2015, 1, 1, tzinfo=UTC)
_MAILBOXES = ("INBOX", *(f"Folder {number}" for number in range(1, 10)))
_TARGET = Target(5_000, at_least=True)


def measure(mails: int, runs: int) -> list[Figure]:
    """Fill a Cyrus with `mails` small mails in ten mailboxes, and list them."""
    with running_cyrus() as cyrus:
        account = cyrus.add_user("bench")
        _fill(account, mails)
        synchronizer = tuple(mails / trio.run(_synchronize, account, mails) for _ in range(runs))
        whole = tuple(mails / _mount_without_cache(account) for _ in range(runs))
    what = f"first listing of {mails:,} mails on Cyrus"
    return [
        Figure(f"{what}: the synchronizer", "emails/s", synchronizer, _TARGET),
        Figure(f"{what}: all of `jmapfs mount`", "emails/s", whole),
    ]


def _fill(account: Account, count: int) -> None:
    for name in _MAILBOXES[1:]:
        account.create_mailbox(name)
    messages = list(_messages(count))
    for number, name in enumerate(_MAILBOXES):
        account.fill(name, messages[number :: len(_MAILBOXES)])


def _messages(count: int) -> Iterator[Message]:
    for number in range(count):
        received = _START + timedelta(minutes=50) * number
        sender = number % 97
        content = (
            f"From: Sender {sender} <sender{sender}@example.net>\r\n"
            "To: alice@example.org\r\n"
            f"Subject: Message number {number}\r\n"
            f"Date: {format_datetime(received)}\r\n"
            f"Message-ID: <{number}@example.net>\r\n"
            "\r\n"
            f"This is message {number}.\r\n"
        )
        yield Message(content.encode(), received=received)


async def _synchronize(account: Account, mails: int) -> float:
    """List the account into a new index; return how many seconds it took."""
    with tempfile.TemporaryDirectory(prefix="jmapfs-bench-") as directory:
        database = IndexDatabase(Path(directory))
        database.prepare()
        with trio.fail_after(_DEADLINE_SECONDS), database.writer() as writer:
            credentials = BasicCredentials(account.name, account.password)
            async with connect(account.url, credentials) as client:
                start = time.perf_counter()
                await Synchronizer(client, database, writer).bring_up_to_date(_ignore_progress)
                seconds = time.perf_counter() - start
        with database.reader() as reader:
            listed = reader.counts().emails
        if listed != mails:
            raise RuntimeError(f"{listed} of {mails} emails are listed")
        return seconds


def _mount_without_cache(account: Account) -> float:
    with bench_home(account.name, account.password) as home:
        mount, seconds = timed_mount(home, account.url, _DEADLINE_SECONDS)
        unmount(mount)
        return seconds


def _ignore_progress(listed: int, total: int | None) -> None:
    del listed, total
