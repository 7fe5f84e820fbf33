"""Several accounts as one tree: each is a directory at the top.

Each account keeps its own tree and its own inodes; here they get the account's number (see
`names.inode`), and their roots get names. Nothing else differs from a mount of one account.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import replace

from jmapfs.errors import EntryNotFoundError
from jmapfs.index.rows import DirectoryRows, FileRecord
from jmapfs.inodes import ROOT_INODE, to_account, to_mount
from jmapfs.tree.status_file import StatusFile
from jmapfs.tree.tree import Attributes, DirectoryListing, TreeView, directory_attributes


class CombinedTree:
    """The trees of several accounts, by their numbers (1 and up) and directory names."""

    def __init__(self, trees: Mapping[int, TreeView], names: Mapping[int, str]) -> None:
        self._trees = trees
        self._slots = {name.encode(): slot for slot, name in names.items()}

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Return the attributes of a name in a directory, or raise EntryNotFoundError."""
        if parent == ROOT_INODE:
            slot = self._slots.get(name)
            if slot is None:
                raise EntryNotFoundError(f"no account {name!r}")
            return self._outward(slot, self._trees[slot].attributes(ROOT_INODE))
        slot, tree, inode = self._inward(parent)
        return self._outward(slot, tree.lookup(inode, name))

    def attributes(self, inode: int) -> Attributes:
        """Return the attributes of an inode, or raise EntryNotFoundError."""
        if inode == ROOT_INODE:
            # Accounts have no times of their own, and seldom come or go.
            return directory_attributes(
                ROOT_INODE, newest=0, digest=0, subdirectories=len(self._trees)
            )
        slot, tree, own = self._inward(inode)
        return self._outward(slot, tree.attributes(own))

    def file(self, inode: int) -> FileRecord:
        """Return which blob an email's inode is, or raise EntryNotFoundError."""
        _, tree, own = self._inward(inode)
        return replace(tree.file(own), inode=inode)

    def status_file(self, inode: int) -> StatusFile | None:
        """Return the content of an account's `.jmapfs.json`, if it is what has that inode."""
        if inode == ROOT_INODE:
            return None
        _, tree, own = self._inward(inode)
        return tree.status_file(own)

    def listing(self, inode: int) -> DirectoryListing:
        """Return all entries of a directory, or raise EntryNotFoundError."""
        if inode == ROOT_INODE:
            return DirectoryListing(
                tuple((0, name, self.lookup(inode, name)) for name in sorted(self._slots)),
                DirectoryRows(),
            )
        slot, tree, own = self._inward(inode)
        listing = tree.listing(own)
        special = tuple(
            (position, name, self._outward(slot, attributes))
            for position, name, attributes in listing.special
        )
        inodes = array("Q", (to_mount(slot, number) for number in listing.files.inodes))
        return DirectoryListing(special, replace(listing.files, inodes=inodes))

    def version(self, inode: int) -> object:
        """Return what becomes another when what a directory holds may have changed."""
        if inode == ROOT_INODE:
            return tuple(tree.version(ROOT_INODE) for tree in self._trees.values())
        _, tree, own = self._inward(inode)
        return tree.version(own)

    def totals(self) -> tuple[int, int]:
        """Return the bytes and the number of all files."""
        parts = [tree.totals() for tree in self._trees.values()]
        return sum(size for size, _ in parts), sum(files for _, files in parts)

    def _inward(self, inode: int) -> tuple[int, TreeView, int]:
        slot, own = to_account(inode)
        tree = self._trees.get(slot)
        if tree is None:
            raise EntryNotFoundError(f"inode {inode} is of no account")
        return slot, tree, own

    @staticmethod
    def _outward(slot: int, attributes: Attributes) -> Attributes:
        return attributes._replace(inode=to_mount(slot, attributes.inode))
