"""The emails of an account in order, with their paths.

A snapshot is made from an `EmailExport`: all emails at or below one directory, in order. Paths
always begin at the root of the tree.
"""

import sqlite3
from functools import cached_property
from typing import Final

import msgspec

from jmapfs.errors import StorageError, printable
from jmapfs.index.layout import Directory, Layout
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import EmailSlice
from jmapfs.tree.status_file import (
    BadEmailStatus,
    Lacking,
    MailboxShortfall,
    ShortfallStatus,
    time_text,
)

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
        self._is_whole = directory.mailbox is None
        self._layout = layout
        self._directory = directory

    @cached_property
    def _mailboxes(self) -> list[ExportedMailbox]:
        return [mailbox for _, mailbox in self._numbered]

    @cached_property
    def _directories(self) -> dict[int, tuple[str, str]]:
        return {number: (mailbox.id, mailbox.path) for number, mailbox in self._numbered}

    @cached_property
    def _numbered(self) -> list[tuple[int, ExportedMailbox]]:
        root = self._directory.path
        paths = {
            one.mailbox: "/".join(one.path)
            for one in self._layout.directories.values()
            if one.mailbox is not None and one.path[: len(root)] == root
        }
        return [
            (
                row.number,
                ExportedMailbox(
                    row.id, row.name, paths[row.number], row.parent_id, row.role, row.sort_order
                ),
            )
            for row in self._reader.mailboxes()
            if row.number in paths
        ]

    def mailboxes(self) -> list[ExportedMailbox]:
        """Return the mailboxes in the order of their paths."""
        return sorted(self._mailboxes, key=lambda mailbox: mailbox.path.encode())

    def lacking(self) -> Lacking:
        """Return what is lacking here, or may be lacking here because its mailboxes are unknown."""
        shortfall = self._reader.state().shortfall
        # The event loop asks for the whole tree. Without a shortfall, it needs no mailboxes.
        paths = {}
        if shortfall is not None or not self._is_whole:
            paths = dict(self._directories.values())
        bad = tuple(
            BadEmailStatus(one.id, one.reason, time_text(one.since))
            for one in self._reader.bad_emails()
            if self._is_whole or not one.mailbox_ids or not paths.keys().isdisjoint(one.mailbox_ids)
        )
        if shortfall is None:
            return Lacking(bad)
        here = tuple(
            MailboxShortfall(paths[mailbox_id], found, expected)
            for mailbox_id, found, expected in shortfall.mailboxes
            if mailbox_id in paths
        )
        here = tuple(sorted(here, key=lambda one: one.path.encode()))
        found, expected = shortfall.found, shortfall.expected
        if not self._is_whole and shortfall.mailboxes:
            if not here:
                return Lacking(bad)
            found, expected = sum(one.found for one in here), sum(one.expected for one in here)
        return Lacking(bad, ShortfallStatus(time_text(shortfall.since), found, expected, here))

    def after(self, position: int, count: int) -> EmailSlice:
        """Return about `count` emails after a position, in the order of the index."""
        return self._reader.emails_after(position, count, self._directories)


def read_lacking(reader: IndexReader) -> Lacking:
    """Return what the whole tree lacks."""
    layout = reader.layout()
    return EmailExport(reader, layout, layout.root).lacking()


class BlobNames:
    """Names blobs in messages, by a file and its email. Use it from one thread at a time."""

    def __init__(self) -> None:
        self._version = -1
        self._paths: dict[int, str] = {}

    def describe(self, reader: IndexReader, blob_id: str) -> str:
        """Return a path from the root of the tree and the email id; never raises an error."""
        try:
            found = reader.name_of_blob(blob_id)
            if found is None:
                return "a mail"
            email_id, mailbox, name = found
            version = reader.layout_version()
            if version != self._version:
                self._paths = reader.layout().mailbox_paths()
                self._version = version
        except (sqlite3.Error, StorageError):
            return "a mail"
        return f"{self._paths.get(mailbox, '?')}/{name} (email {printable(email_id, 80)})"
