"""All emails of a tree, in order, each with its files: a snapshot is made from this.

An export may be of a part of the tree: everything below one directory. Paths are always those
from the root of the tree.
"""

from __future__ import annotations

from typing import Final

import msgspec

from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import EmailSlice
from jmapfs.tree.layout import Directory, Layout

FIRST: Final = 0
"""The position of the first email."""


class ExportedMailbox(msgspec.Struct, frozen=True, rename="camel"):
    """A mailbox as the server describes it (RFC 8621 §2), and its path of names in the tree."""

    id: str
    name: str
    path: str
    parent_id: str | None
    role: str | None
    sort_order: int


class EmailExport:
    """The emails at or below a directory of a tree, in the state that `reader` is pinned to.

    Use it from one thread at a time.
    """

    def __init__(self, reader: IndexReader, layout: Layout, directory: Directory) -> None:
        self._reader = reader
        paths = {
            one.mailbox: "/".join(one.path)
            for one in layout.directories.values()
            if one.mailbox is not None and one.path[: len(directory.path)] == directory.path
        }
        rows = [row for row in reader.mailboxes() if row.number in paths]
        self._directories = {row.number: (row.id, paths[row.number]) for row in rows}
        self._mailboxes = [
            ExportedMailbox(
                row.id, row.name, paths[row.number], row.parent_id, row.role, row.sort_order
            )
            for row in rows
        ]

    def mailboxes(self) -> list[ExportedMailbox]:
        """Return the mailboxes in the order of their paths."""
        return sorted(self._mailboxes, key=lambda mailbox: mailbox.path.encode())

    def after(self, position: int, count: int) -> EmailSlice:
        """Return some `count` emails from a position on: in order of receipt, blob id and id."""
        return self._reader.emails_after(position, count, self._directories)
