"""Mailboxes in the index: which there are, and where each belongs."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from jmapfs.index.rows import MailboxRecord

_PUT: Final = """
INSERT INTO mailbox (id, name, parent_id, role, sort_order, known) VALUES (?, ?, ?, ?, ?, 1)
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, parent_id = excluded.parent_id, role = excluded.role,
    sort_order = excluded.sort_order, known = 1
WHERE name IS NOT excluded.name OR parent_id IS NOT excluded.parent_id
    OR role IS NOT excluded.role OR sort_order IS NOT excluded.sort_order OR NOT known
"""


class _Placed(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def parent_id(self) -> str | None: ...


def put(connection: sqlite3.Connection, records: Iterable[MailboxRecord]) -> None:
    """Add mailboxes, or bring those that are known to what the records say."""
    changed = 0
    for record in records:
        changed += connection.execute(
            _PUT,
            (record.id, record.name, record.parent_id, record.role, record.sort_order),
        ).rowcount
    if changed:
        _layout_changed(connection)


def replace(connection: sqlite3.Connection, records: Sequence[MailboxRecord]) -> list[str]:
    """Bring the mailboxes to a complete list; return the ids that it no longer has.

    Where all that changed of a mailbox is its id (a server migration), its row stays: the emails
    in it are then never out of the tree.
    """
    known = [
        MailboxRecord(*row)
        for row in connection.execute("SELECT id, name, parent_id FROM mailbox WHERE known")
    ]
    listed_ids = {record.id for record in records}
    known_ids = {record.id for record in known}
    paths = _unique_paths(records)
    known_paths = _unique_paths(known)
    successors = {
        path: mailbox_id for path, mailbox_id in paths.items() if mailbox_id not in known_ids
    }
    gone = []
    path_of = {mailbox_id: path for path, mailbox_id in known_paths.items()}
    for mailbox_id in sorted(known_ids - listed_ids):
        path = path_of.get(mailbox_id)
        successor = successors.pop(path, None) if path else None
        if successor is None or not rename_id(connection, mailbox_id, successor):
            gone.append(mailbox_id)
    put(connection, records)
    return gone


def rename_id(connection: sqlite3.Connection, old_id: str, new_id: str) -> bool:
    """Give a mailbox the id that the server now has for it; False where that has a row already.

    Emails may have come first, and made a row for an id that nothing was known of.
    """
    if connection.execute("SELECT 1 FROM mailbox WHERE id = ?", (new_id,)).fetchone() is not None:
        return False
    connection.execute("UPDATE mailbox SET id = ? WHERE id = ?", (new_id, old_id))
    _layout_changed(connection)
    return True


def number(connection: sqlite3.Connection, mailbox_id: str) -> int:
    """Return the number of a mailbox; one that is not known gets a place of its own."""
    row = connection.execute("SELECT number FROM mailbox WHERE id = ?", (mailbox_id,)).fetchone()
    if row is not None:
        return int(row[0])
    cursor = connection.execute(
        "INSERT INTO mailbox (id, name, known) VALUES (?, '', 0)", (mailbox_id,)
    )
    _layout_changed(connection)
    assert cursor.lastrowid is not None  # noqa: S101 - for the type checker: it was an INSERT
    return cursor.lastrowid


def retire(connection: sqlite3.Connection, mailbox_ids: Iterable[str]) -> None:
    """Remove mailboxes that are gone and empty, and earlier ones that have become so.

    One that holds emails stays: that the server does not name it is no proof that they are gone.
    """
    connection.executemany(
        "UPDATE mailbox SET known = 0 WHERE id = ?", [(mailbox_id,) for mailbox_id in mailbox_ids]
    )
    removed = connection.execute(
        "DELETE FROM mailbox WHERE NOT known AND NOT EXISTS"
        " (SELECT 1 FROM membership WHERE membership.mailbox = mailbox.number)"
    )
    if removed.rowcount:
        _layout_changed(connection)


def orphaned_emails(connection: sqlite3.Connection) -> list[str]:
    """Return the ids of the emails that are in mailboxes which the server does not describe."""
    return [
        row[0]
        for row in connection.execute(
            "SELECT DISTINCT email.id FROM mailbox"
            " JOIN membership ON membership.mailbox = mailbox.number"
            " JOIN email ON email.number = membership.email WHERE NOT known"
        )
    ]


def _layout_changed(connection: sqlite3.Connection) -> None:
    connection.execute(
        "INSERT INTO meta (name, value) VALUES ('layout_version', '1')"
        " ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
    )


def _unique_paths(records: Iterable[_Placed]) -> dict[tuple[str, ...], str]:
    """Return the id of each mailbox by its path of names, where no other has the same path."""
    by_id = {record.id: record for record in records}
    paths = {mailbox_id: _path(mailbox_id, by_id) for mailbox_id in by_id}
    counted = Counter(paths.values())
    return {path: mailbox_id for mailbox_id, path in paths.items() if counted[path] == 1}


def _path(mailbox_id: str, by_id: Mapping[str, _Placed]) -> tuple[str, ...]:
    names: list[str] = []
    passed: set[str] = set()
    at: str | None = mailbox_id
    while at is not None and at in by_id and at not in passed:
        passed.add(at)
        names.append(by_id[at].name)
        at = by_id[at].parent_id
    return tuple(reversed(names))
