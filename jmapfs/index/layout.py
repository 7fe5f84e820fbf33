"""The directories of an account.

Each mailbox has exactly one directory.

The directory of a mailbox is in the directory of its parent mailbox. Servers also send parents that
do not exist: such mailboxes become top-level directories. If mailboxes form a cycle, the one with
the smallest id becomes a top-level directory. A mailbox also becomes a top-level directory if its
path would be too long or too deep to be opened. So a path never has more than MOST_LEVELS names.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from jmapfs.index.rows import MailboxRow
from jmapfs.inodes import ROOT_INODE, directory_inode
from jmapfs.names import MAILBOX_NAME_BYTES, sibling_names

MOST_LEVELS: Final = 100
"""Mail servers allow between 10 and 50 levels. Each level costs memory and time."""

# Linux opens no path of 4096 bytes or more (PATH_MAX), and the tree is below a mount point or in a
# snapshot. Names that get a key are a little longer than computed here.
_MOST_PATH_BYTES: Final = 2048

# A large one takes 60 MB, and only the newest is asked for often.
_LAYOUTS: Final = 2


@dataclass(frozen=True, slots=True)
class Directory:
    """The root, or the directory of a mailbox.

    parent: the inode of the parent; the root is its own parent.
    path: the names from the root.
    mailbox: the number of the mailbox in the index, None for the root.
    children: the inodes of its subdirectories by name, in the byte order of the names.
    """

    inode: int
    parent: int
    path: tuple[str, ...]
    mailbox: int | None
    children: dict[str, int] = field(default_factory=dict)

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


class LayoutCache:
    """The newest layouts of an index, by layout version, for all threads of a process.

    A layout takes 10 µs for each mailbox. So each version is laid out once, if possible in a worker
    thread before the event loop needs it. A version must be put only after it is committed.
    """

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}

    def get(self, version: int) -> Layout | None:
        """Return the layout of a version, or None."""
        return self._layouts.get(version)

    def put(self, version: int, layout: Layout) -> None:
        """Keep the layout of a version."""
        # Threads need no lock: if two put a layout at the same time, one may be laid out again.
        newest = sorted({*self._layouts, version})[-_LAYOUTS:]
        known = {**self._layouts, version: layout}
        self._layouts = {each: known[each] for each in newest}


def lay_out(mailboxes: Iterable[MailboxRow]) -> Layout:
    """Assign a place, a name and an inode to every mailbox. The time grows linearly."""
    by_id = {mailbox.id: mailbox for mailbox in mailboxes}
    children: defaultdict[str | None, dict[str, str]] = defaultdict(dict)
    for mailbox_id, parent_id in find_parents(by_id.values()).by_id.items():
        children[parent_id][mailbox_id] = by_id[mailbox_id].name

    root = Directory(inode=ROOT_INODE, parent=ROOT_INODE, path=(), mailbox=None)
    directories = {ROOT_INODE: root}
    pending: list[tuple[str | None, Directory]] = [(None, root)]
    # This is not recursive: a path may have more names than Python's stack allows.
    while pending:
        parent_id, directory = pending.pop()
        siblings = sibling_names(children.get(parent_id, {}))
        for child_id, name in sorted(siblings.items(), key=lambda item: item[1].encode()):
            path = (*directory.path, name)
            inode = _free_inode(path, directories)
            child = Directory(
                inode=inode, parent=directory.inode, path=path, mailbox=by_id[child_id].number
            )
            directory.children[name] = inode
            directories[inode] = child
            if child_id in children:
                pending.append((child_id, child))
    return Layout(directories)


class Placed(Protocol):
    """A mailbox as the server describes it, or as the index has it."""

    @property
    def id(self) -> str:
        """The mailbox id."""

    @property
    def name(self) -> str | None:
        """The name on the server."""

    @property
    def parent_id(self) -> str | None:
        """The id of the parent on the server."""


class Parents(NamedTuple):
    """The parent of each mailbox by mailbox id, None at the top, and how many were too deep."""

    by_id: Mapping[str, str | None]
    too_deep: int


def find_parents(mailboxes: Iterable[Placed]) -> Parents:
    """Return the parents of mailboxes. No parent is missing, and there are no cycles."""
    by_id = {mailbox.id: mailbox for mailbox in mailboxes}
    parents: dict[str, str | None] = {}
    for mailbox_id in sorted(by_id):
        parent_id = by_id[mailbox_id].parent_id
        parents[mailbox_id] = parent_id if parent_id in by_id else None
    visited: set[str] = set()
    for mailbox_id in parents:
        chain: dict[str, None] = {}
        current: str | None = mailbox_id
        while current is not None and current not in visited and current not in chain:
            chain[current] = None
            current = parents[current]
        if current is not None and current not in visited:
            ids = list(chain)
            parents[min(ids[ids.index(current) :])] = None
        visited.update(chain)
    return Parents(parents, _move_deep_ones(parents, by_id))


def _move_deep_ones(parents: dict[str, str | None], by_id: Mapping[str, Placed]) -> int:
    """Make mailboxes with a path that is too deep or too long top-level ones; return how many."""
    children: defaultdict[str | None, list[str]] = defaultdict(list)
    for mailbox_id, parent_id in parents.items():
        children[parent_id].append(mailbox_id)
    moved = 0
    pending = [(mailbox_id, 0, 0) for mailbox_id in children[None]]
    while pending:
        mailbox_id, level, path_bytes = pending.pop()
        name = by_id[mailbox_id].name or ""
        name_bytes = 1 + min(len(name.encode(errors="surrogatepass")), MAILBOX_NAME_BYTES)
        level, path_bytes = level + 1, path_bytes + name_bytes
        if level > MOST_LEVELS or path_bytes > _MOST_PATH_BYTES:
            parents[mailbox_id] = None
            level, path_bytes, moved = 1, name_bytes, moved + 1
        pending += [(each, level, path_bytes) for each in children.get(mailbox_id, ())]
    return moved


def _free_inode(path: tuple[str, ...], taken: Mapping[int, object]) -> int:
    text, attempt = "/".join(path), 0
    while (inode := directory_inode(text, attempt=attempt)) in taken:
        attempt += 1
    return inode
