"""The tree of an account: names, inodes, and the entries and attributes of directories.

The data come from an `IndexReader`: from the newest commit, or from the state to which the reader
is pinned. Each call makes one or two lookups in SQLite's page cache, which take some microseconds.
Only `listing` takes longer for a larger mailbox. Call `listing` in a worker thread, with a tree of
its own.

Modes, owners and all attributes of an email are constant (SEMANTICS.md): to a backup tool, changed
attributes mean changed content.
"""

import enum
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from jmapfs.errors import EntryNotFoundError
from jmapfs.index.layout import Directory, Layout
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState, DirectoryRows, FileRecord
from jmapfs.inodes import ROOT_INODE, STATUS_FILE_INODE
from jmapfs.tree.export import EmailExport
from jmapfs.tree.status_file import (
    ONLINE,
    STATUS_FILE_NAME,
    Reachability,
    StatusFile,
    make_status_file,
)

BLOCK: Final = 512
"""The unit of `st_blocks`, in bytes (stat(2))."""

_FILE_MODE: Final = 0o444
_DIRECTORY_MODE: Final = 0o755

_NANOSECONDS: Final = 1_000_000_000


class Kind(enum.Enum):
    """What an inode is."""

    DIRECTORY = stat.S_IFDIR
    FILE = stat.S_IFREG


@dataclass(frozen=True, slots=True)
class Ownership:
    """The owner of the files, and the permission bits that are removed."""

    uid: int
    gid: int
    umask: int = 0o077

    def mode(self, kind: Kind) -> int:
        """Return `st_mode`.

        Files are read-only. Directories are writable for the owner: a backup tool copies the mode,
        and a copy of a read-only directory could not be deleted.
        """
        base = _DIRECTORY_MODE if kind is Kind.DIRECTORY else _FILE_MODE
        return kind.value | (base & ~self.umask)


class Attributes(NamedTuple):
    """Attributes of one inode: `size` in bytes, `time_ns` (mtime, ctime, atime) since 1970.

    This is a named tuple, because a listing makes one for each entry. To make a frozen dataclass
    takes twice as long.
    """

    inode: int
    kind: Kind
    size: int
    time_ns: int
    links: int

    @property
    def blocks(self) -> int:
        """The number of 512-byte blocks of the content."""
        return (self.size + BLOCK - 1) // BLOCK


def file_attributes(inode: int, *, size: int, received_at: int, links: int) -> Attributes:
    """Return the attributes of an email: its times are the time of receipt."""
    return Attributes(inode, Kind.FILE, size, time_ns(received_at), links)


def directory_attributes(inode: int, *, changed_at: int, subdirectories: int) -> Attributes:
    """Return the attributes of a directory: its times are the time when its names changed last."""
    return Attributes(inode, Kind.DIRECTORY, 0, time_ns(changed_at), 2 + subdirectories)


def time_ns(seconds: int) -> int:
    """Return a time in nanoseconds, 0 if it is before 1970.

    Seconds are unsigned in the FUSE protocol, and in many file systems for backups.
    """
    return max(seconds, 0) * _NANOSECONDS


@dataclass(frozen=True, slots=True)
class DirectoryListing:
    """The entries of a directory at one state, in the byte order of their names.

    `special` has the directories and `.jmapfs.json`, each with the number of emails in `files` that
    come before this entry.
    """

    special: tuple[tuple[int, bytes, Attributes], ...]
    files: DirectoryRows

    def __len__(self) -> int:
        return len(self.special) + len(self.files)

    def entries(self, start: int = 0) -> Iterator[tuple[bytes, Attributes]]:
        """Return names and attributes from position `start` on."""
        # If p emails come before special entry k, this entry is at position p + k.
        passed = sum(1 for index, entry in enumerate(self.special) if entry[0] + index < start)
        row = start - passed
        for before, name, attributes in self.special[passed:]:
            yield from self._files(row, before)
            yield name, attributes
            row = before
        yield from self._files(row, len(self.files))

    def _files(self, first: int, end: int) -> Iterator[tuple[bytes, Attributes]]:
        names, inodes, sizes = self.files.names, self.files.inodes, self.files.sizes
        received_at, links = self.files.received_at, self.files.links
        for row in range(first, end):
            yield (
                names[row],
                file_attributes(
                    inodes[row], size=sizes[row], received_at=received_at[row], links=links[row]
                ),
            )


class TreeView(Protocol):
    """The tree of one account or of several."""

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Return the attributes of a name or of `..` in a directory; or EntryNotFoundError."""

    def attributes(self, inode: int) -> Attributes:
        """Return the attributes of an inode, or raise EntryNotFoundError."""

    def file(self, inode: int) -> FileRecord:
        """Return the file with an inode, or raise EntryNotFoundError."""

    def status_file(self, inode: int) -> StatusFile | None:
        """Return the content of `.jmapfs.json` if the inode is its inode, else None."""

    def listing(self, inode: int) -> DirectoryListing:
        """Return all entries of a directory, or raise EntryNotFoundError."""

    def version(self, inode: int) -> object:
        """Return a value that changes when the entries of a directory may have changed.

        Compare the value only with values for the same directory from the same view.
        """

    def epoch(self, inode: int) -> str:
        """Return the epoch of the account of an inode (`blob_keys`)."""

    def totals(self) -> tuple[int, int]:
        """Return the bytes and the number of all files."""


class Tree:
    """The tree of one account, from one reader; use it from one thread at a time.

    `reachability` is called for the content of `.jmapfs.json`.
    """

    def __init__(
        self, reader: IndexReader, reachability: Callable[[], Reachability] = lambda: ONLINE
    ) -> None:
        self._reader = reader
        self._reachability = reachability
        self._layout = Layout({})
        self._layout_version = -1
        self._status_file: StatusFile | None = None
        self._status_file_key: tuple[AccountState, Reachability] | None = None

    def layout(self) -> Layout:
        """Return the current directories."""
        version = self._reader.layout_version()
        if version != self._layout_version:
            self._layout = self._reader.layout()
            self._layout_version = version
        return self._layout

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Return the attributes of a name in the directory with inode `parent`.

        Raises EntryNotFoundError if there is no such directory, or no such name in it.
        """
        layout = self.layout()
        directory = layout.directories.get(parent)
        text = _decoded(name)
        if directory is None or text is None:
            raise EntryNotFoundError(f"no {name!r} in directory {parent}")
        if text == "..":
            return self._directory_attributes(layout.directories[directory.parent])
        if (inode := directory.children.get(text)) is not None:
            return self._directory_attributes(layout.directories[inode])
        if parent == ROOT_INODE and text == STATUS_FILE_NAME:
            return self._status_file_attributes()
        if directory.mailbox is not None:
            record = self._reader.named_file(directory.mailbox, text)
            if record is not None:
                return _attributes(record)
        raise EntryNotFoundError(f"no {name!r} in directory {parent}")

    def attributes(self, inode: int) -> Attributes:
        """Return the attributes of an inode.

        Raises EntryNotFoundError if there is no such inode.
        """
        if inode == STATUS_FILE_INODE:
            return self._status_file_attributes()
        directory = self.layout().directories.get(inode)
        if directory is not None:
            return self._directory_attributes(directory)
        return _attributes(self.file(inode))

    def file(self, inode: int) -> FileRecord:
        """Return the file with an inode; raises EntryNotFoundError if no email has that inode."""
        record = self._reader.file(inode)
        if record is None:
            raise EntryNotFoundError(f"no file has inode {inode}")
        return record

    def listing(self, inode: int) -> DirectoryListing:
        """Return all entries of a directory, from one state of the index.

        Raises EntryNotFoundError if there is no such directory.
        """
        with self._reader.pinned():
            directory = self.layout().directories.get(inode)
            if directory is None:
                raise EntryNotFoundError(f"no directory has inode {inode}")
            mailbox = directory.mailbox
            files = DirectoryRows() if mailbox is None else self._reader.listing(mailbox)
            special = {
                name.encode(): self._directory_attributes(self._layout.directories[child])
                for name, child in directory.children.items()
            }
            if inode == ROOT_INODE:
                special[STATUS_FILE_NAME.encode()] = self._status_file_attributes()
        return DirectoryListing(_with_positions(special, files.names), files)

    def version(self, inode: int) -> object:
        """Return a value that changes when the entries of a directory may have changed."""
        version = self._reader.version()
        # Only `.jmapfs.json`, in the root, depends on data that are not in the index.
        return (version, self._reachability()) if inode == ROOT_INODE else version

    def status_file(self, inode: int = STATUS_FILE_INODE) -> StatusFile | None:
        """Return the content of `.jmapfs.json` if the inode is its inode, else None."""
        return self._current_status_file() if inode == STATUS_FILE_INODE else None

    def epoch(self, inode: int) -> str:  # noqa: ARG002 - there is one account
        """Return the epoch of the account (`blob_keys`)."""
        return self._reader.epoch()

    def totals(self) -> tuple[int, int]:
        """Return the bytes and the number of all files; this reads the whole table."""
        return self._reader.total_size(), self._reader.counts().emails

    def _directory_attributes(self, directory: Directory) -> Attributes:
        return directory_attributes(
            directory.inode,
            changed_at=self._reader.directory_time(directory.inode),
            subdirectories=len(directory.children),
        )

    def _status_file_attributes(self) -> Attributes:
        file = self._current_status_file()
        return Attributes(STATUS_FILE_INODE, Kind.FILE, len(file.content), file.time_ns, 1)

    def _current_status_file(self) -> StatusFile:
        key = self._reader.state(), self._reachability()
        if self._status_file is None or self._status_file_key != key:
            layout = self.layout()
            lacking = EmailExport(self._reader, layout, layout.root).lacking()
            self._status_file = make_status_file(key[0], self._reader.counts(), lacking, key[1])
            self._status_file_key = key
        return self._status_file


def _attributes(record: FileRecord) -> Attributes:
    return file_attributes(
        record.inode, size=record.size, received_at=record.received_at, links=record.links
    )


def _decoded(name: bytes) -> str | None:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


def _with_positions(
    special: dict[bytes, Attributes], names: list[bytes]
) -> tuple[tuple[int, bytes, Attributes], ...]:
    return tuple(
        (bisect_left(names, name), name, attributes) for name, attributes in sorted(special.items())
    )
