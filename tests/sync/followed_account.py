"""A server in this process, an index that follows it, and comparisons of both.

The expected contents of an index come from two independent sources: the objects of the server, and
a new index of the same account, which must have the same tree with the same inodes.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jmapfs.index.database import IndexDatabase
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.credentials import BasicCredentials
from jmapfs.sync.synchronizer import Synchronizer
from jmapfs.tree.tree import Attributes, Kind, Tree
from tests.server import Account, Counts, MailServer, Quirks, running_server

CREDENTIALS = BasicCredentials("alice@example.org", "secret")


@dataclass(frozen=True)
class HeldEmail:
    """The properties of an email that both an index and a server have."""

    blob_id: str
    thread_id: str
    received_at: int
    size: int
    mailbox_ids: frozenset[str]
    keywords: frozenset[str]


@dataclass(frozen=True)
class HeldMailbox:
    """The properties of a mailbox that both an index and a server have."""

    name: str
    parent_id: str | None
    role: str | None
    sort_order: int


@dataclass(frozen=True)
class Held:
    """The emails and mailboxes of an account by id, in a server or an index."""

    emails: dict[str, HeldEmail]
    mailboxes: dict[str, HeldMailbox]


def held_by_server(account: Account) -> Held:
    return Held(
        {
            email.id: HeldEmail(
                email.blob_id,
                email.thread_id,
                int(datetime.fromisoformat(email.received_at).timestamp()),
                email.size,
                email.mailbox_ids,
                email.keywords,
            )
            for email in account.emails.values()
        },
        {
            box.id: HeldMailbox(box.name, box.parent_id, box.role, box.sort_order)
            for box in account.mailboxes.values()
        },
    )


def held_by_index(database: IndexDatabase) -> Held:
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        mailboxes = {
            row[0]: HeldMailbox(*row[1:])
            for row in connection.execute(
                "SELECT id, name, parent_id, role, sort_order FROM mailbox WHERE known"
            )
        }
        undescribed = connection.execute("SELECT count(*) FROM mailbox WHERE NOT known").fetchone()
        assert undescribed == (0,)
        orphans = connection.execute(
            "SELECT count(*) FROM file WHERE inode NOT IN (SELECT inode FROM email)"
        ).fetchone()
        assert orphans == (0,)
        emails = {}
        for number, email_id, blob_id, thread_id, received_at, size in connection.execute(
            "SELECT number, id, blob_id, thread_id, received_at, size"
            " FROM email JOIN file USING (inode)"
        ).fetchall():
            boxes = connection.execute(
                "SELECT id FROM membership JOIN mailbox ON number = mailbox WHERE email = ?",
                (number,),
            ).fetchall()
            keywords = connection.execute(
                "SELECT keyword FROM keyword WHERE email = ?", (number,)
            ).fetchall()
            assert len(set(boxes)) == len(boxes)
            emails[email_id] = HeldEmail(
                blob_id,
                thread_id,
                received_at,
                size,
                frozenset(row[0] for row in boxes),
                frozenset(row[0] for row in keywords),
            )
    return Held(emails, mailboxes)


def shown(database: IndexDatabase) -> dict[str, Attributes]:
    """Return everything in the tree by path, except `.jmapfs.json`, which has the time."""
    with database.reader() as reader:
        return dict(_walk(Tree(reader)))


def portable(tree: dict[str, Attributes]) -> dict[str, Attributes]:
    """Return the part that does not depend on the index: without the times of directories."""
    return {
        path: attributes._replace(time_ns=0) if attributes.kind is Kind.DIRECTORY else attributes
        for path, attributes in tree.items()
    }


def emails_shown(database: IndexDatabase) -> dict[str, Attributes]:
    return {
        path: attributes
        for path, attributes in shown(database).items()
        if attributes.kind is Kind.FILE
    }


def _walk(tree: Tree) -> Iterator[tuple[str, Attributes]]:
    for directory in tree.layout().directories.values():
        path = "/".join(directory.path)
        yield path, tree.attributes(directory.inode)
        for name, attributes in tree.listing(directory.inode).entries():
            assert tree.lookup(directory.inode, name) == attributes
            if attributes.kind is Kind.FILE and name != b".jmapfs.json":
                yield f"{path}/{name.decode()}", attributes


@dataclass
class Follower:
    """An index that follows an account, and the server."""

    server: MailServer
    account: Account
    url: str
    directory: Path
    client: Client
    database: IndexDatabase
    writer: IndexWriter
    progress: list[tuple[int, int | None]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def counts(self) -> Counts:
        return self.server.counts

    @property
    def quirks(self) -> Quirks:
        return self.server.quirks

    def synchronizer(self, **options: Any) -> Synchronizer:
        return Synchronizer(self.client, self.database, self.writer, **options)

    async def update(self, *, compare: bool = False, **options: Any) -> bool:
        """Bring the index up to date with a new Synchronizer."""
        return await self.synchronizer(**options).bring_up_to_date(
            lambda listed, total: self.progress.append((listed, total)), compare=compare
        )

    def shown(self) -> dict[str, Attributes]:
        return shown(self.database)

    def emails_shown(self) -> dict[str, Attributes]:
        return emails_shown(self.database)

    def assert_true(self) -> None:
        """Check that the index has exactly what the server has, and the state for it."""
        assert held_by_index(self.database) == held_by_server(self.account)
        state = self.writer.state()
        assert state.complete
        assert state.consistent
        assert state.email_state == self.account.states["Email"]
        assert self.writer.listing_progress() is None

    async def assert_as_if_new(self) -> None:
        """Check also that a new index has the same tree."""
        self.assert_true()
        async with following(
            self.server, self.directory / f"new{next(self._numbers)}", self.url, self.account
        ) as new:
            await new.update()
            assert portable(self.shown()) == portable(new.shown())


@contextlib.asynccontextmanager
async def following(
    server: MailServer, directory: Path, url: str, account: Account | None = None
) -> AsyncIterator[Follower]:
    """Create an index in `directory` for an account of a running server; it is still empty."""
    account = account or server.primary
    database = IndexDatabase(directory)
    database.prepare()
    async with connect(f"{url}/session", CREDENTIALS, account=account.id) as client:
        with database.writer() as writer:
            yield Follower(server, account, url, directory, client, database, writer)


@contextlib.asynccontextmanager
async def followed(account: Account, directory: Path, **quirks: Any) -> AsyncIterator[Follower]:
    """Run a server for an account, and create an empty index for it."""
    server = MailServer(account, quirks=Quirks(**quirks))
    async with running_server(server) as url, following(server, directory / "index", url) as f:
        yield f


def message(number: int, *, body: str = "") -> bytes:
    return (
        f"From: Sender {number} <s{number}@example.net>\r\nSubject: Number {number}\r\n"
        f"Message-ID: <{number}.{body}@example.net>\r\n\r\nThis is {number}. {body}\r\n"
    ).encode()


def small_account(count: int = 23) -> Account:
    """Return an account with a few mailboxes, P0 to P3 (P2 below P1), and mails M0, M1, …

    They are a minute apart, but for every fifth (M4, M9, …), which shares its minute with the one
    before. Some are in two mailboxes. M1 and M2 are the same message received twice; M3 and M4 are
    two Emails with the same blob, received in the same second, and both are in P0.
    """
    account = Account()
    for number, (name, parent) in enumerate(
        [("Inbox", None), ("Work", None), ("Clients", "P1"), ("Empty", None)]
    ):
        account.create_mailbox(name, parent, mailbox_id=f"P{number}")
    for number in range(count):
        minute = number - (number % 5 == 4)
        boxes = [f"P{number % 3}", *(["P0"] if number % 5 == 4 else [])]
        account.add_email(
            message({2: 1, 4: 3}.get(number, number)),
            dict.fromkeys(boxes),
            ["$seen"] if number % 2 else [],
            f"2024-03-01T{minute // 60:02}:{minute % 60:02}:00Z",
            email_id=f"M{number}",
        )
    return account
