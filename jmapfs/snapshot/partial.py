"""A snapshot that is being made: a directory with another name, until it is whole.

    DEST/.partial-2026-11-22T010203Z/
      journal.jsonl     which contents have come
      content/          contents that wait for their place
      snapshot/         what will be a snapshot, in one rename

What an interrupted run leaves is taken over by the next one. Each content is read and compared with
its checksum before it is used: a crash of the machine may have left anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from jmapfs.errors import storage_errors
from jmapfs.snapshot.contents import Contents
from jmapfs.snapshot.destination import PARTIAL, Destination
from jmapfs.snapshot.journal import TREE, Journal, read_journal, read_origin
from jmapfs.snapshot.records import MAIL, Origin
from jmapfs.snapshot.removal import remove_partial
from jmapfs.snapshot.syncing import sync_directory

_MODE: Final = 0o700


class Partial:
    """The directory of a snapshot that is being made, within its context."""

    def __init__(self, destination: Destination, journal: Journal, path: Path) -> None:
        self.path = path
        self.tree.mkdir(mode=_MODE)
        self.contents = Contents(path, journal)
        self._destination = destination

    @property
    def tree(self) -> Path:
        """What will be the snapshot."""
        return self.path / TREE

    @staticmethod
    def tree_file(file: str) -> str:
        """Return the path of a file of the snapshot, relative to the partial."""
        return f"{TREE}/{file}"

    def make_directories(self, paths: Sequence[str]) -> None:
        """Make the directories of mailboxes, given by their paths; raises OSError."""
        root = self.tree / MAIL
        root.mkdir(mode=_MODE)
        for path in paths:
            directory = root / path
            # A part of a tree begins below directories that are no mailboxes of it.
            for parent in reversed(directory.relative_to(root).parents[:-1]):
                (root / parent).mkdir(mode=_MODE, exist_ok=True)
            directory.mkdir(mode=_MODE, exist_ok=True)

    def publish(self, date: str) -> Path:
        """Give the snapshot its name, for good; raises OSError."""
        path = self._destination.path / date
        self.tree.rename(path)
        sync_directory(self._destination.path)
        return path


@contextlib.contextmanager
def begin_partial(destination: Destination, date: str, origin: Origin) -> Iterator[Partial]:
    """Make the directory of a snapshot that is begun now; it stays when the context ends.

    Raises:
        StorageError: it cannot be made.
    """
    path = destination.path / f"{PARTIAL}{date}"
    # One of the same second, by a run that just failed, or whose clock was ahead.
    number = 1
    while path.exists():
        number += 1
        path = destination.path / f"{PARTIAL}{date}-{number}"
    with storage_errors(path):
        path.mkdir(mode=_MODE)
        journal = Journal(path, origin)
    with journal:
        with storage_errors(path):
            partial = Partial(destination, journal, path)
        yield partial


class Leftovers:
    """What earlier runs began and did not end; `partials` is where it is."""

    def __init__(self, destination: Destination) -> None:
        self.partials = destination.partials()

    def origins(self) -> list[Origin]:
        """Return whose mail it is."""
        origins = map(read_origin, self.partials)
        return [origin for origin in origins if origin is not None]

    def take_over(self, contents: Contents) -> None:
        """Move all contents to where they are wanted now, and remove the rest; raises OSError."""
        for path in self.partials:
            for kept in read_journal(path):
                contents.adopt(path / kept.file, kept)
            remove_partial(path)
