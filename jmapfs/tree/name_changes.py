"""Which names have appeared, disappeared or moved between two states of an account.

The answer comes from the journal of the index. The entries of a name alternate between added and
removed. So what the tree has now, and the number of entries since then, tell what it had before.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

import msgspec

from jmapfs.index.layout import Directory, Layout
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import JournalEntry

_MOST_CHARACTERS: Final = 1 << 25


class TreeState(NamedTuple):
    """A state of the index as far as names depend on it.

    `position` is the position in the journal. `layout` belongs to `layout_version`.
    """

    position: int
    layout_version: int
    epoch: str
    layout: Layout


class NameChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file or directory has moved from `old` to `new`, or has only one of these paths.

    Paths begin at the root of the tree. If a directory has moved, what is in it has moved with it.
    `old` is a path in the tree before all changes, and `new` is a path in the tree after them.
    """

    old: str | None = None
    new: str | None = None
    directory: bool = False


def name_changes(
    reader: IndexReader, before: TreeState, after: TreeState
) -> list[NameChange] | None:
    """Return the changes between two states, neither of them later than that of `reader`.

    A directory comes before what is new in it, and after what has left it. Returns None if anything
    may have changed: the server was reset, the journal is too short, or the paths of all changes
    have more than 30 million characters. Returns None also if `after` is the earlier state: the
    kernel can be told of a change just before the tree is frozen at the state before it.
    """
    if after.position < before.position:
        return None
    with reader.pinned():
        part = reader.journal_after(before.position)
        later = reader.journal_after(after.position)
        if not (part.whole and later.whole and before.epoch == after.epoch == reader.epoch()):
            return None
        entries = part.entries[: len(part.entries) - len(later.entries)]
        removed, added = _changed_names(reader, entries, later.entries)
    old_paths, new_paths = before.layout.mailbox_paths(), after.layout.mailbox_paths()
    length = 0
    for names, paths in ((removed, old_paths), (added, new_paths)):
        length += sum(len(paths.get(one.mailbox, "")) + len(one.name) for one in names)
    if length > _MOST_CHARACTERS:
        return None
    files = _moves(_by_inode(removed, old_paths), _by_inode(added, new_paths))
    directories = [] if before.layout is after.layout else _directory_changes(before, after)
    there = [one for one in directories if one.new is not None]
    gone = [one for one in directories if one.new is None]
    return [*there, *files, *reversed(gone)]


def _changed_names(
    reader: IndexReader, entries: Iterable[JournalEntry], later: Iterable[JournalEntry]
) -> tuple[list[JournalEntry], list[JournalEntry]]:
    """Return the names that some entries have removed and added, in their order.

    `later` are the entries after them, up to the state of `reader`.
    """
    removed: list[JournalEntry] = []
    added: list[JournalEntry] = []
    later_counts = {name: len(group) for name, group in _by_name(later).items()}
    for name, group in _by_name(entries).items():
        exists_now = reader.named_file(*name) is not None
        existed_after = exists_now ^ (later_counts.get(name, 0) % 2 == 1)
        existed_before = existed_after ^ (len(group) % 2 == 1)
        if existed_before and existed_after and group[0].inode == group[-1].inode:
            continue
        if existed_before:
            removed.append(group[0])
        if existed_after:
            added.append(group[-1])
    return removed, added


def _by_name(entries: Iterable[JournalEntry]) -> dict[tuple[int, str], list[JournalEntry]]:
    found: dict[tuple[int, str], list[JournalEntry]] = {}
    for entry in entries:
        if entry.name:
            found.setdefault((entry.mailbox, entry.name), []).append(entry)
    return found


def _directories(state: TreeState) -> Iterator[tuple[str, Directory]]:
    """Yield the directories of mailboxes with their paths, parents first."""
    for one in sorted(state.layout.directories.values(), key=lambda directory: directory.path):
        if one.mailbox is not None:
            yield "/".join(one.path), one


def _by_inode(names: Iterable[JournalEntry], paths: Mapping[int, str]) -> dict[int, list[str]]:
    found: defaultdict[int, list[str]] = defaultdict(list)
    for one in names:
        if one.mailbox in paths:
            found[one.inode].append(f"{paths[one.mailbox]}/{one.name}")
    return found


def _moves(
    removed: Mapping[int, Sequence[str]], added: Mapping[int, Sequence[str]]
) -> Iterator[NameChange]:
    """Yield the changes of files, given their paths by inode."""
    for inode in {**removed, **added}:
        old, new = set(removed.get(inode, ())), set(added.get(inode, ()))
        # A mailbox was replaced by another one with the same name and the same mail.
        unchanged = old & new
        for pair in zip_longest(sorted(old - unchanged), sorted(new - unchanged)):
            yield NameChange(*pair)


def _directory_changes(before: TreeState, after: TreeState) -> list[NameChange]:
    """Return the changes of directories, parents first."""
    old = {one.mailbox: (path, _place(before.layout, one)) for path, one in _directories(before)}
    new = {one.mailbox: (path, _place(after.layout, one)) for path, one in _directories(after)}
    removed = {path: None for mailbox, (path, _) in old.items() if mailbox not in new}
    changes = []
    for mailbox, (path, place) in new.items():
        if mailbox not in old:
            # A mailbox may have been replaced by another one with the same name.
            if path not in removed:
                changes.append(NameChange(new=path, directory=True))
            removed.pop(path, None)
        elif old[mailbox][1] != place and old[mailbox][0] != path:
            changes.append(NameChange(old[mailbox][0], path, directory=True))
    return changes + [NameChange(path, directory=True) for path in removed]


def _place(layout: Layout, directory: Directory) -> tuple[int | None, str]:
    """Return the mailbox of the parent, and the name of a directory."""
    return layout.directories[directory.parent].mailbox, directory.name
