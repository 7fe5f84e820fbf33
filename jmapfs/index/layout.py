"""The directories of an account.

Each mailbox has exactly one directory.

The directory of a mailbox is in the directory of its parent mailbox. Servers also send parents that
do not exist: such mailboxes become top-level directories. If mailboxes form a cycle, the one with
the smallest id becomes a top-level directory.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jmapfs.index.rows import MailboxRow
from jmapfs.inodes import ROOT_INODE, directory_inode
from jmapfs.names import sibling_names


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

    def mailbox_paths(self) -> dict[int, str]:
        """Return the paths of all mailboxes from the root, by their numbers."""
        directories = self.directories.values()
        return {one.mailbox: "/".join(one.path) for one in directories if one.mailbox is not None}

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
        directories[directory.inode] = replace(directory, children=named)
    return Layout(directories)


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
