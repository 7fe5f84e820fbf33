"""The records of the emails of a frozen tree, without a mount."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from jmapfs.control.messages import TreeDescription
from jmapfs.daemon.view import FrozenRecords
from jmapfs.errors import BusyError, StorageError, UsageError
from jmapfs.index.database import IndexDatabase
from jmapfs.index.rows import AccountState, EmailRow, EmailSlice
from jmapfs.jmap.types import Email
from jmapfs.tree.export import FIRST, EmailExport, ExportedMailbox
from jmapfs.tree.tree import Tree
from tests import indexed
from tests.indexed import mailbox, put_mailboxes

STATE = AccountState(
    server="https://example.org/api",
    account_id="A1",
    account_name="Alice",
    username="alice",
    email_state="e1",
    complete=True,
    synced_at=1000.5,
)


def email(number: int, *mailbox_ids: str) -> Email:
    return indexed.email(
        f"E{number}",
        *mailbox_ids,
        blob=f"B{number}",
        at=number * 10,
        size=100 + number,
        keywords=("$seen",),
    )


def filled(directory: Path) -> IndexDatabase:
    """Ten mails in Work, five of them in Work/Clients too, and five others in Inbox."""
    database = IndexDatabase(directory)
    database.prepare()
    with database.writer() as writer, writer.transaction():
        writer.replace_mailboxes(
            [
                mailbox("in", "Inbox", role="inbox"),
                mailbox("work", "Work"),
                mailbox("clients", "Clients", "work"),
            ]
        )
        writer.put_emails(
            [
                *(
                    email(number, "work", *(["clients"] if number < 5 else []))
                    for number in range(10)
                ),
                *(email(number, "in") for number in range(10, 15)),
            ]
        )
        writer.set_state(STATE)
    return database


@pytest.fixture
def database(tmp_path: Path) -> IndexDatabase:
    return filled(tmp_path / "one")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def records(stack: ExitStack, databases: dict[str | None, IndexDatabase]) -> FrozenRecords:
    readers = {}
    for root, database in databases.items():
        readers[root] = stack.enter_context(database.reader())
        readers[root].pin()
    return FrozenRecords(readers)


async def all_mails(of: FrozenRecords, path: str, count: int) -> list[EmailRow]:
    found: list[EmailRow] = []
    position: int | None = FIRST
    while position is not None:
        some = msgspec.json.decode(await of.mails(path, position, count), type=EmailSlice)
        found += some.emails
        position = some.position
    return found


async def test_a_description_covers_a_directory_and_those_below(
    database: IndexDatabase, stack: ExitStack
) -> None:
    here = records(stack, {None: database})
    assert await here.describe("") == TreeDescription(
        server=STATE.server,
        account_id="A1",
        account_name="Alice",
        username="alice",
        email_state="e1",
        synced_at=1000.5,
        consistent=True,
        root="",
        directory="",
        mails=15,
        mailboxes=[
            ExportedMailbox("in", "Inbox", "Inbox", None, "inbox", 0),
            ExportedMailbox("work", "Work", "Work", None, None, 0),
            ExportedMailbox("clients", "Clients", "Work/Clients", "work", None, 0),
        ],
    )
    for path, ids, count in (
        ("Work", ["work", "clients"], 10),
        ("/Work/Clients/", ["clients"], 5),
        ("Inbox", ["in"], 5),
    ):
        some = await here.describe(path)
        assert some.directory == path.strip("/")
        assert [box.id for box in some.mailboxes] == ids
        assert some.mails == count


async def test_records_are_those_of_the_index(database: IndexDatabase, stack: ExitStack) -> None:
    here = records(stack, {None: database})
    reader = stack.enter_context(database.reader())
    layout = Tree(reader).layout()
    for path in ("", "Work", "Work/Clients", "Inbox"):
        directory = layout.at(tuple(path.split("/")) if path else ())
        assert directory is not None
        direct = EmailExport(reader, layout, directory).after(FIRST, 1000).emails
        assert direct
        for count in (1, 4, 1000):
            assert await all_mails(here, path, count) == direct


async def test_records_are_of_one_state(database: IndexDatabase, stack: ExitStack) -> None:
    here = records(stack, {None: database})
    before = await all_mails(here, "", 1000)
    with database.writer() as writer, writer.transaction():
        writer.put_emails([email(3, "in"), email(20, "in")])
        put_mailboxes(writer, mailbox("new", "New"))
    assert await all_mails(here, "", 4) == before
    assert (await here.describe("")).mails == 15
    with pytest.raises(UsageError, match="New"):
        await here.describe("New")


async def test_several_accounts(tmp_path: Path, database: IndexDatabase, stack: ExitStack) -> None:
    here = records(stack, {"Alice": database, "Team": filled(tmp_path / "two")})
    for path in ("", "/"):
        with pytest.raises(UsageError, match="name one of its directories"):
            await here.describe(path)
        with pytest.raises(UsageError, match="name one of its directories"):
            await here.mails(path, FIRST, 10)
    whole = await here.describe("Team")
    assert (whole.root, whole.directory, whole.mails) == ("Team", "", 15)
    some = await here.describe("Team/Work/Clients")
    assert (some.root, some.directory, some.mails) == ("Team", "Work/Clients", 5)
    # Paths of files begin at the account's own root.
    assert (await all_mails(here, "Alice/Inbox", 9))[0].files == (
        ("in", f"Inbox/{indexed.file_name(email(10))}"),
    )


@pytest.mark.parametrize(
    "path", ["Nothing", "Work/Nothing", "..", ".", ".jmapfs.json", "Work/x.eml"]
)
async def test_paths_that_are_no_directories(
    database: IndexDatabase, stack: ExitStack, path: str
) -> None:
    for here in (records(stack, {None: database}), records(stack, {"Alice": database})):
        with pytest.raises(UsageError, match="no such directory"):
            await here.describe(path)
        with pytest.raises(UsageError, match="no such directory"):
            await here.mails(path, FIRST, 10)


async def test_closed_records_are_refused(database: IndexDatabase, stack: ExitStack) -> None:
    here = records(stack, {None: database})
    await here.close()
    with pytest.raises(BusyError, match="has ended"):
        await here.describe("")
    with pytest.raises(BusyError, match="has ended"):
        await here.mails("", FIRST, 10)


async def test_an_index_that_cannot_be_read(
    database: IndexDatabase, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = records(stack, {None: database})

    def broken(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(EmailExport, "after", broken)
    with pytest.raises(StorageError, match="disk I/O error"):
        await here.mails("", FIRST, 10)


async def test_close_waits_for_reads_that_are_under_way(
    database: IndexDatabase, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = records(stack, {None: database})
    reading, go = threading.Event(), threading.Event()
    after = EmailExport.after
    closed = False

    def slow(self: EmailExport, position: int, count: int) -> EmailSlice:
        reading.set()
        go.wait(10)
        return after(self, position, count)

    async def close() -> None:
        nonlocal closed
        await here.close()
        closed = True

    monkeypatch.setattr(EmailExport, "after", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.mails, "", FIRST, 10)
        await trio.to_thread.run_sync(reading.wait)
        nursery.start_soon(close)
        await wait_all_tasks_blocked(0.05)
        assert not closed
        go.set()
    assert closed
