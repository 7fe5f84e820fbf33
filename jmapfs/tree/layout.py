"""Which directories there are: one for each mailbox, in exactly one place.

A mailbox is a directory in that of its parent. Servers also send parents that do not exist and
mailboxes that are their own ancestors: the first of these become top-level directories, of the
others the one with the smallest id does, so that each is found, once, by everybody.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jmapfs.index.rows import MailboxRow
from jmapfs.inodes import ROOT_INODE, directory_inode
from jmapfs.names import sibling_names


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory: the root (`mailbox` is None), or that of a mailbox.

    `mailbox` is the number of the mailbox in the index, `path` the names from the root, `parent`
    the inode of the parent (the root is its own), `children` the inodes of the directories in it
    by name.
    """

    inode: int
    parent: int
    path: tuple[str, ...]
    mailbox: int | None
    children: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, empty for the root."""
        return self.path[-1] if self.path else ""

    @property
    def children_digest(self) -> int:
        """A number that changes with the set of names of the directories in it."""
        return sum(zlib.crc32(name.encode()) for name in self.children)


@dataclass(frozen=True, slots=True)
class Layout:
    """All directories by inode."""

    directories: Mapping[int, Directory]

    @property
    def root(self) -> Directory:
        """The directory at the mountpoint."""
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
    """Give every mailbox its place, its name and its inode."""
    by_id = {mailbox.id: mailbox for mailbox in mailboxes}
    children: defaultdict[str | None, dict[str, str]] = defaultdict(dict)
    for mailbox_id, parent_id in _parents(by_id).items():
        children[parent_id][mailbox_id] = by_id[mailbox_id].name

    directories: dict[int, Directory] = {}
    root = Directory(inode=ROOT_INODE, parent=ROOT_INODE, path=(), mailbox=None)
    waiting: list[tuple[str | None, Directory]] = [(None, root)]
    taken = {ROOT_INODE}
    # With a list instead of recursion: hostile mailboxes nest deeper than Python's stack.
    while waiting:
        parent_id, directory = waiting.pop()
        named: dict[str, int] = {}
        siblings = sibling_names(children[parent_id])
        for child_id, name in sorted(siblings.items(), key=lambda item: item[1].encode()):
            path = (*directory.path, name)
            inode = _free_inode(path, taken)
            named[name] = inode
            child = Directory(
                inode=inode, parent=directory.inode, path=path, mailbox=by_id[child_id].number
            )
            waiting.append((child_id, child))
        directories[directory.inode] = Directory(
            inode=directory.inode,
            parent=directory.parent,
            path=directory.path,
            mailbox=directory.mailbox,
            children=named,
        )
    return Layout(directories)


def _parents(by_id: Mapping[str, MailboxRow]) -> dict[str, str | None]:
    """Return the parent of each mailbox, None at the top; the result has no cycle and no gap."""
    parents: dict[str, str | None] = {}
    for mailbox_id in sorted(by_id):
        parent_id = by_id[mailbox_id].parent_id
        parents[mailbox_id] = parent_id if parent_id in by_id else None
    settled: set[str] = set()
    for mailbox_id in sorted(by_id):
        chain: list[str] = []
        at: str | None = mailbox_id
        while at is not None and at not in settled and at not in chain:
            chain.append(at)
            at = parents[at]
        if at is not None and at not in settled:
            parents[min(chain[chain.index(at) :])] = None
        settled.update(chain)
    return parents


def _free_inode(path: tuple[str, ...], taken: set[int]) -> int:
    attempt = 0
    while (inode := directory_inode("/".join(path), attempt=attempt)) in taken:
        attempt += 1
    taken.add(inode)
    return inode
