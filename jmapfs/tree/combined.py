"""Several accounts as one tree: each account is a directory in the root.

Each account has its own tree with its own inodes. In the combined tree the inodes include the
number of the account (see `inodes`), and the roots of the accounts have names.
"""

import contextlib
from array import array
from collections.abc import Mapping
from dataclasses import replace

from jmapfs.errors import DamageError, EntryNotFoundError
from jmapfs.index.rows import DirectoryRows, FileRecord
from jmapfs.inodes import ROOT_INODE, to_account, to_mount
from jmapfs.tree.status_file import StatusFile
from jmapfs.tree.tree import Attributes, DirectoryListing, TreeView, directory_attributes


class CombinedTree:
    """The trees of several accounts, by their numbers (1 and up) and directory names.

    `changed_at` is when these names changed last, in seconds since 1970.
    """

    def __init__(
        self, trees: Mapping[int, TreeView], names: Mapping[int, str], changed_at: int
    ) -> None:
        self._trees = trees
        self._changed_at = changed_at
        self._numbers = {name.encode(): number for number, name in names.items()}

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Return the attributes of a name in a directory, or raise EntryNotFoundError."""
        if parent == ROOT_INODE:
            if name == b"..":
                return self.attributes(ROOT_INODE)
            number = self._numbers.get(name)
            if number is None:
                raise EntryNotFoundError(f"no account {name!r}")
            return self._to_mount(number, self._trees[number].attributes(ROOT_INODE))
        number, tree, inode = self._to_account(parent)
        if inode == ROOT_INODE and name == b"..":
            return self.attributes(ROOT_INODE)
        return self._to_mount(number, tree.lookup(inode, name))

    def attributes(self, inode: int) -> Attributes:
        """Return the attributes of an inode, or raise EntryNotFoundError."""
        if inode == ROOT_INODE:
            return directory_attributes(
                ROOT_INODE, changed_at=self._changed_at, subdirectories=len(self._trees)
            )
        number, tree, own = self._to_account(inode)
        return self._to_mount(number, tree.attributes(own))

    def file(self, inode: int) -> FileRecord:
        """Return the file with an inode, or raise EntryNotFoundError."""
        _, tree, own = self._to_account(inode)
        return replace(tree.file(own), inode=inode)

    def status_file(self, inode: int) -> StatusFile | None:
        """Return the content of an account's `.jmapfs.json` if it has that inode, else None."""
        if inode == ROOT_INODE:
            return None
        _, tree, own = self._to_account(inode)
        return tree.status_file(own)

    def listing(self, inode: int) -> DirectoryListing:
        """Return all entries of a directory, or raise EntryNotFoundError."""
        if inode == ROOT_INODE:
            return DirectoryListing(
                tuple((0, name, self._account_root(name)) for name in sorted(self._numbers)),
                DirectoryRows(),
            )
        number, tree, own = self._to_account(inode)
        listing = tree.listing(own)
        special = tuple(
            (position, name, self._to_mount(number, attributes))
            for position, name, attributes in listing.special
        )
        inodes = array("Q", (to_mount(number, own) for own in listing.files.inodes))
        return DirectoryListing(special, replace(listing.files, inodes=inodes))

    def version(self, inode: int) -> object:
        """Return a value that changes when the entries of a directory may have changed."""
        if inode == ROOT_INODE:
            return tuple(_version(tree) for tree in self._trees.values())
        _, tree, own = self._to_account(inode)
        return tree.version(own)

    def epoch(self, inode: int) -> str:
        """Return the epoch of the account of an inode (`blob_keys`)."""
        _, tree, own = self._to_account(inode)
        return tree.epoch(own)

    def totals(self) -> tuple[int, int]:
        """Return the bytes and the number of all files."""
        parts = []
        for tree in self._trees.values():
            with contextlib.suppress(DamageError):
                parts.append(tree.totals())
        return sum(size for size, _ in parts), sum(files for _, files in parts)

    def _account_root(self, name: bytes) -> Attributes:
        """Return the directory of an account, for a listing of the accounts.

        A damaged index does not hide the other accounts. The directory itself cannot be opened.
        """
        try:
            return self.lookup(ROOT_INODE, name)
        except DamageError:
            attributes = directory_attributes(
                ROOT_INODE, changed_at=self._changed_at, subdirectories=0
            )
            return self._to_mount(self._numbers[name], attributes)

    def _to_account(self, inode: int) -> tuple[int, TreeView, int]:
        """Return the account number and tree of an inode, and the inode in that tree."""
        number, own = to_account(inode)
        tree = self._trees.get(number)
        if tree is None:
            raise EntryNotFoundError(f"inode {inode} belongs to no account")
        return number, tree, own

    @staticmethod
    def _to_mount(number: int, attributes: Attributes) -> Attributes:
        return attributes._replace(inode=to_mount(number, attributes.inode))


def _version(tree: TreeView) -> object:
    try:
        return tree.version(ROOT_INODE)
    except DamageError:
        # It differs from every version, also from itself later.
        return object()
