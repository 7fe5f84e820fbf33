"""All mails of a tree, in order, each with its places in it: what a copy of the tree is made from.

A copy may be of a part of the tree: what is below one directory. Paths stay those of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from jmapfs.index.reader import IndexReader, MailRow
from jmapfs.index.rows import MailboxRow
from jmapfs.tree.layout import Directory, Layout

FIRST: Final = 0
"""The position before all mails."""


class MailboxPlace(msgspec.Struct, frozen=True, rename="camel"):
    """A mailbox as the server describes it (RFC 8621 §2), and its path of names in the tree."""

    id: str
    name: str
    path: str
    parent_id: str | None
    role: str | None
    sort_order: int


class MailWithPlaces(msgspec.Struct, frozen=True, array_like=True):
    """An email and its files; `size` in bytes, `received_at` in seconds since 1970 (UTC).

    `files` has, for each mailbox that it is in, the mailbox id and the path of the file from the
    root of the tree.
    """

    id: str
    blob_id: str
    thread_id: str
    received_at: int
    size: int
    keywords: tuple[str, ...]
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class MailsPart:
    """Some mails in order; `position` is where the next part begins, None at the end."""

    mails: list[MailWithPlaces]
    position: int | None


class MailsInOrder:
    """The mails at or below a directory of a tree, as one state of an index has them.

    The reader is pinned to that state, and is used from one thread at a time.
    """

    def __init__(self, reader: IndexReader, layout: Layout, directory: Directory) -> None:
        self._reader = reader
        self._rows = {row.number: row for row in reader.mailboxes()}
        self._paths = {
            one.mailbox: "/".join(one.path)
            for one in layout.directories.values()
            if one.mailbox is not None and one.path[: len(directory.path)] == directory.path
        }

    def mailboxes(self) -> list[MailboxPlace]:
        """Return the mailboxes in the order of their paths."""
        places = [_place(self._rows[number], path) for number, path in self._paths.items()]
        return sorted(places, key=lambda place: place.path.encode())

    def after(self, position: int, count: int) -> MailsPart:
        """Return some `count` mails from a position on: in order of receipt, blob id and id."""
        page = self._reader.mails_after(position, count)
        mails = [mail for row in page.rows if (mail := self._mail(row)).files]
        return MailsPart(mails, page.last)

    def _mail(self, row: MailRow) -> MailWithPlaces:
        files = [
            (self._rows[number].id, f"{path}/{name}")
            for number, name in row.names
            if (path := self._paths.get(number)) is not None
        ]
        if len(files) > 1:
            files.sort(key=lambda file: file[1].encode())
        return MailWithPlaces(
            row.email_id,
            row.blob_id,
            row.thread_id,
            row.received_at,
            row.size,
            row.keywords,
            tuple(files),
        )


def _place(row: MailboxRow, path: str) -> MailboxPlace:
    return MailboxPlace(row.id, row.name, path, row.parent_id, row.role, row.sort_order)
