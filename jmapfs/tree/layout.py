"""The directories of an account, and its emails in order with their paths.

Each mailbox has exactly one directory.

The directory of a mailbox is in the directory of its parent mailbox. Servers also send parents that
do not exist: such mailboxes become top-level directories. If mailboxes form a cycle, the one with
the smallest id becomes a top-level directory.

A snapshot is made from an `EmailExport`: all emails at or below one directory, in order. Paths
always begin at the root of the tree.
"""

import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from jmapfs.errors import printable
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import EmailSlice, MailboxRow
from jmapfs.inodes import ROOT_INODE, directory_inode
from jmapfs.names import sibling_names
from jmapfs.tree.status_file import (
    BadEmailStatus,
    Lacking,
    MailboxShortfall,
    ShortfallStatus,
    time_text,
)


@dataclass(frozen=True, slots=True)
class Directory:
    """The root, or the directory of a mailbox.

    parent: the inode of the parent; the root is its own parent.
    path: the names from the root.
    mailbox: the number of the mailbox in the index, None for the root.
    children: the inodes of its subdirectories by name.
    """

    inode: int
    parent: int
    path: tuple[str, ...]
    mailbox: int | None
    children: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name, empty for the root."""
        return self.path[-1] if self.path else ""

    @property
    def children_digest(self) -> int:
        """A number that changes when the set of names of the subdirectories changes."""
        return sum(zlib.crc32(name.encode()) for name in self.children)


@dataclass(frozen=True, slots=True)
class Layout:
    """All directories by inode."""

    directories: Mapping[int, Directory]

    @property
    def root(self) -> Directory:
        """The root directory."""
        return self.directories[ROOT_INODE]

    def at(self, path: Sequence[str]) -> Directory | None:
        """Return the directory at a path of names from the root, or None."""
        directory = self.root
        for name in path:
            inode = directory.children.get(name)
            if inode is None:
                return None
            directory = self.directories[inode]
        return directory


def lay_out(mailboxes: Iterable[MailboxRow]) -> Layout:
    """Assign a place, a name and an inode to every mailbox."""
    by_id = {mailbox.id: mailbox for mailbox in mailboxes}
    children: defaultdict[str | None, dict[str, str]] = defaultdict(dict)
    for mailbox_id, parent_id in _parents(by_id).items():
        children[parent_id][mailbox_id] = by_id[mailbox_id].name

    directories: dict[int, Directory] = {}
    root = Directory(inode=ROOT_INODE, parent=ROOT_INODE, path=(), mailbox=None)
    pending: list[tuple[str | None, Directory]] = [(None, root)]
    taken = {ROOT_INODE}
    # This is not recursive: mailboxes may be nested more deeply than Python's stack allows.
    while pending:
        parent_id, directory = pending.pop()
        named: dict[str, int] = {}
        siblings = sibling_names(children[parent_id])
        for child_id, name in sorted(siblings.items(), key=lambda item: item[1].encode()):
            path = (*directory.path, name)
            inode = _free_inode(path, taken)
            named[name] = inode
            child = Directory(
                inode=inode, parent=directory.inode, path=path, mailbox=by_id[child_id].number
            )
            pending.append((child_id, child))
        directories[directory.inode] = Directory(
            inode=directory.inode,
            parent=directory.parent,
            path=directory.path,
            mailbox=directory.mailbox,
            children=named,
        )
    return Layout(directories)


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
                directories = lay_out(reader.mailboxes()).directories.values()
                self._paths = {
                    one.mailbox: "/".join(one.path)
                    for one in directories
                    if one.mailbox is not None
                }
                self._version = version
        except sqlite3.Error:
            return "a mail"
        return f"{self._paths.get(mailbox, '?')}/{name} (email {printable(email_id, 80)})"


def _parents(by_id: Mapping[str, MailboxRow]) -> dict[str, str | None]:
    """Return the parent of each mailbox, None at the top, without cycles and missing parents."""
    parents: dict[str, str | None] = {}
    for mailbox_id in sorted(by_id):
        parent_id = by_id[mailbox_id].parent_id
        parents[mailbox_id] = parent_id if parent_id in by_id else None
    visited: set[str] = set()
    for mailbox_id in sorted(by_id):
        chain: list[str] = []
        current: str | None = mailbox_id
        while current is not None and current not in visited and current not in chain:
            chain.append(current)
            current = parents[current]
        if current is not None and current not in visited:
            parents[min(chain[chain.index(current) :])] = None
        visited.update(chain)
    return parents


def _free_inode(path: tuple[str, ...], taken: set[int]) -> int:
    attempt = 0
    while (inode := directory_inode("/".join(path), attempt=attempt)) in taken:
        attempt += 1
    taken.add(inode)
    return inode


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

    def lacking(self) -> Lacking:
        """Return what is lacking here, or may be lacking here because its mailboxes are unknown."""
        paths = dict(self._directories.values())
        bad = tuple(
            BadEmailStatus(one.id, one.reason, time_text(one.since))
            for one in self._reader.bad_emails()
            if self._is_whole or not one.mailbox_ids or not paths.keys().isdisjoint(one.mailbox_ids)
        )
        shortfall = self._reader.state().shortfall
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
    layout = lay_out(reader.mailboxes())
    return EmailExport(reader, layout, layout.root).lacking()
