"""Compares the mail of two snapshots. Both manifests are read line by line, at the same time.

Mails are matched by blob and time of receipt, because the id of an email may differ in every
snapshot. If several emails have the same blob and time, other properties are compared: first equal
emails are matched, then the most similar ones, and so on.
"""

import heapq
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

import msgspec

from jmapfs.errors import AlteredFilesError
from jmapfs.snapshot.manifest import MANIFEST, Description, SavedMail, read_manifest
from jmapfs.snapshot.repository import Snapshot


class _Change(msgspec.Struct, frozen=True, tag_field="change"):
    """A change of an email. `id` is from the later snapshot or, if it is gone, the earlier one."""

    id: str
    blob_id: str
    received_at: str


class MailAdded(_Change, frozen=True, tag="added"):
    """A mail that only the later snapshot has. `files` are relative to the snapshot."""

    files: tuple[str, ...]


class MailRemoved(_Change, frozen=True, tag="gone"):
    """A mail that only the earlier snapshot has."""

    files: tuple[str, ...]


class MailMoved(_Change, frozen=True, tag="moved"):
    """A mail that is in other mailboxes than before, and so has other files."""

    old: tuple[str, ...]
    new: tuple[str, ...]


class KeywordsChanged(_Change, frozen=True, tag="flagged"):
    """A mail with changed keywords: the keywords that were set, and those that were cleared."""

    files: tuple[str, ...]
    set: tuple[str, ...]
    cleared: tuple[str, ...]


Change: TypeAlias = MailAdded | MailRemoved | MailMoved | KeywordsChanged


class RenamedMailbox(msgspec.Struct, frozen=True):
    """A mailbox with a new path, because the mailbox or one of its parents was renamed."""

    id: str
    old: str
    new: str


def changes_between(old: Snapshot, new: Snapshot) -> Iterator[Change]:
    """Yield what changed from one snapshot to the other, in the order of the mails.

    Raises, during the iteration:
        MissingFilesError: there is no manifest.
        AlteredFilesError: a manifest is not valid, or not in order.
        StorageError: a manifest cannot be read.
    """
    merged = heapq.merge(
        _sorted_mails(old, is_later=False), _sorted_mails(new, is_later=True), key=_KEY
    )
    for _, group in groupby(merged, key=_KEY):
        earlier: list[SavedMail] = []
        later: list[SavedMail] = []
        for one in group:
            (later if one.is_later else earlier).append(one.mail)
        yield from _changes(earlier, later)


def renamed_mailboxes(old: Description, new: Description) -> list[RenamedMailbox]:
    """Return the mailboxes whose paths differ between the snapshots, sorted by new path."""
    paths = {mailbox.id: mailbox.path for mailbox in old.mailboxes}
    return [
        RenamedMailbox(mailbox.id, paths[mailbox.id], mailbox.path)
        for mailbox in new.mailboxes
        if paths.get(mailbox.id, mailbox.path) != mailbox.path
    ]


_YEAR: Final = re.compile("[0-9]{4,9}")

_Key: TypeAlias = tuple[int, str, str]


class _SortedMail(NamedTuple):
    """A mail with its sort key. `is_later` tells whether it is from the later snapshot."""

    key: _Key
    mail: SavedMail
    is_later: bool


_KEY: Final[Callable[[_SortedMail], _Key]] = attrgetter("key")


def _sorted_mails(snapshot: Snapshot, *, is_later: bool) -> Iterator[_SortedMail]:
    last: _Key | None = None
    for _, mail in read_manifest(snapshot.path):
        key = _key(snapshot, mail)
        if last is not None and key < last:
            raise AlteredFilesError(
                f"{snapshot.path / MANIFEST}: not in order at the email {mail.id!a}: run verify"
            )
        last = key
        yield _SortedMail(key, mail, is_later)


def _key(snapshot: Snapshot, mail: SavedMail) -> _Key:
    # Years of more than four digits do not sort as text. The rest of a date does.
    year, _, rest = mail.received_at.partition("-")
    if not _YEAR.fullmatch(year):
        raise AlteredFilesError(
            f"{snapshot.path / MANIFEST}: {mail.received_at!a} is not a date: run verify"
        )
    return int(year), rest, mail.blob_id


def _changes(old: Sequence[SavedMail], new: Sequence[SavedMail]) -> Iterator[Change]:
    """Yield the changes of mails with the same blob and time."""
    if len(old) == len(new) == 1:
        yield from _differences(old[0], new[0])
        return
    removed, added = list(old), list(new)
    for criterion in _CRITERIA:
        if not removed or not added:
            break
        pairs, removed, added = _match(removed, added, criterion)
        for before, after in pairs:
            yield from _differences(before, after)
    for mail in removed:
        yield MailRemoved(mail.id, mail.blob_id, mail.received_at, _files(mail))
    for mail in added:
        yield MailAdded(mail.id, mail.blob_id, mail.received_at, _files(mail))


def _match(
    old: Iterable[SavedMail], new: Iterable[SavedMail], criterion: Callable[[SavedMail], Hashable]
) -> tuple[list[tuple[SavedMail, SavedMail]], list[SavedMail], list[SavedMail]]:
    """Pair mails with equal criteria. Return the pairs, and the unpaired old and new mails."""
    unmatched: dict[Hashable, list[SavedMail]] = {}
    for mail in old:
        unmatched.setdefault(criterion(mail), []).append(mail)
    for equal in unmatched.values():
        equal.reverse()
    pairs = []
    new_left = []
    for mail in new:
        equal = unmatched.get(criterion(mail), [])
        if equal:
            pairs.append((equal.pop(), mail))
        else:
            new_left.append(mail)
    old_left = [mail for equal in unmatched.values() for mail in reversed(equal)]
    return pairs, old_left, new_left


def _differences(old: SavedMail, new: SavedMail) -> Iterator[Change]:
    # If a mailbox was renamed, or has a new id, its mails do not count as moved.
    if _mailboxes(old) != _mailboxes(new) and set(_files(old)) != set(_files(new)):
        yield MailMoved(new.id, new.blob_id, new.received_at, _files(old), _files(new))
    before, after = set(old.keywords), set(new.keywords)
    if before != after:
        yield KeywordsChanged(
            new.id,
            new.blob_id,
            new.received_at,
            _files(new),
            tuple(sorted(after - before)),
            tuple(sorted(before - after)),
        )


def _files(mail: SavedMail) -> tuple[str, ...]:
    return tuple(place.file for place in mail.mailboxes)


def _mailboxes(mail: SavedMail) -> frozenset[str]:
    return frozenset(place.id for place in mail.mailboxes)


# Criteria for matching mails of the same content, the best first. Mails that match by one of the
# first two criteria have not changed.
_CRITERIA: Final[Sequence[Callable[[SavedMail], Hashable]]] = (
    lambda mail: (_mailboxes(mail), frozenset(mail.keywords)),
    lambda mail: (frozenset(_files(mail)), frozenset(mail.keywords)),
    lambda mail: mail.id,
    lambda mail: frozenset(_files(mail)),
    _mailboxes,
    lambda _mail: None,
)
