"""What became of the mail between two snapshots: both manifests are read in step, line by line.

A mail is its blob and the time of receipt; ids of emails may be others in every snapshot. Emails
that have both in common are told apart as far as they can be: those that look the same in both
snapshots are the same, the others are matched by what they have in common.
"""

from __future__ import annotations

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
    """A change to the email `id`, of the later snapshot if it is in that."""

    id: str
    blob_id: str
    received_at: str


class MailAdded(_Change, frozen=True, tag="added"):
    """A mail that is in the later snapshot only; `files` are relative to the snapshot."""

    files: tuple[str, ...]


class MailRemoved(_Change, frozen=True, tag="gone"):
    """A mail that is in the earlier snapshot only."""

    files: tuple[str, ...]


class MailMoved(_Change, frozen=True, tag="moved"):
    """A mail that is in other mailboxes, under other names."""

    old: tuple[str, ...]
    new: tuple[str, ...]


class KeywordsChanged(_Change, frozen=True, tag="flagged"):
    """A mail that has other keywords: some were set, some cleared."""

    files: tuple[str, ...]
    set: tuple[str, ...]
    cleared: tuple[str, ...]


Change: TypeAlias = MailAdded | MailRemoved | MailMoved | KeywordsChanged


class RenamedMailbox(msgspec.Struct, frozen=True):
    """A mailbox with another path, for a new name of its own or of one above it."""

    id: str
    old: str
    new: str


def changes_between(old: Snapshot, new: Snapshot) -> Iterator[Change]:
    """Yield what changed from one snapshot to the other, in the order of the mails.

    Raises, from the iteration:
        MissingFilesError: there is no manifest.
        AlteredFilesError: a manifest is none, or not in order.
        StorageError: it cannot be read.
    """
    both = heapq.merge(_in_order(old, later=False), _in_order(new, later=True), key=_KEY)
    for _, mails in groupby(both, key=_KEY):
        earlier: list[SavedMail] = []
        later: list[SavedMail] = []
        for one in mails:
            (later if one.later else earlier).append(one.mail)
        yield from _changes(earlier, later)


def renamed_mailboxes(old: Description, new: Description) -> list[RenamedMailbox]:
    """Return the mailboxes that are in both snapshots with different paths, by the new ones."""
    paths = {mailbox.id: mailbox.path for mailbox in old.mailboxes}
    return [
        RenamedMailbox(mailbox.id, paths[mailbox.id], mailbox.path)
        for mailbox in new.mailboxes
        if paths.get(mailbox.id, mailbox.path) != mailbox.path
    ]


_YEAR: Final = re.compile("[0-9]{4,9}")

_Key: TypeAlias = tuple[int, str, str]


class _Placed(NamedTuple):
    """A mail at its place in the order; `later` is which of the snapshots it is of."""

    key: _Key
    mail: SavedMail
    later: bool


_KEY: Final[Callable[[_Placed], _Key]] = attrgetter("key")


def _in_order(snapshot: Snapshot, *, later: bool) -> Iterator[_Placed]:
    last: _Key | None = None
    for mail in read_manifest(snapshot.path):
        key = _key(snapshot, mail)
        if last is not None and key < last:
            raise AlteredFilesError(
                f"{snapshot.path / MANIFEST}: not in order at the email {mail.id!a}: run verify"
            )
        last = key
        yield _Placed(key, mail, later)


def _key(snapshot: Snapshot, mail: SavedMail) -> _Key:
    # Years of more digits do not sort as text, all that follows does.
    year, _, rest = mail.received_at.partition("-")
    if not _YEAR.fullmatch(year):
        raise AlteredFilesError(
            f"{snapshot.path / MANIFEST}: {mail.received_at!a} is not a date: run verify"
        )
    return int(year), rest, mail.blob_id


def _changes(old: Sequence[SavedMail], new: Sequence[SavedMail]) -> Iterator[Change]:
    """Yield what became of mails that have the blob and the time in common."""
    if len(old) == len(new) == 1:
        yield from _differences(old[0], new[0])
        return
    gone, added = list(old), list(new)
    for alike in _ALIKE:
        if not gone or not added:
            break
        pairs, gone, added = _matched(gone, added, alike)
        for before, after in pairs:
            yield from _differences(before, after)
    for mail in gone:
        yield MailRemoved(mail.id, mail.blob_id, mail.received_at, _files(mail))
    for mail in added:
        yield MailAdded(mail.id, mail.blob_id, mail.received_at, _files(mail))


def _matched(
    old: Iterable[SavedMail], new: Iterable[SavedMail], alike: Callable[[SavedMail], Hashable]
) -> tuple[list[tuple[SavedMail, SavedMail]], list[SavedMail], list[SavedMail]]:
    """Pair mails that are alike, each with one; return the pairs, and those without one."""
    waiting: dict[Hashable, list[SavedMail]] = {}
    for mail in old:
        waiting.setdefault(alike(mail), []).append(mail)
    for same in waiting.values():
        same.reverse()
    pairs = []
    alone = []
    for mail in new:
        same = waiting.get(alike(mail), [])
        if same:
            pairs.append((same.pop(), mail))
        else:
            alone.append(mail)
    return pairs, [mail for same in waiting.values() for mail in reversed(same)], alone


def _differences(old: SavedMail, new: SavedMail) -> Iterator[Change]:
    # A renamed mailbox moves no mail, nor does one with a new id in the place of the old one.
    if _mailboxes(old) != _mailboxes(new) and set(_files(old)) != set(_files(new)):
        yield MailMoved(new.id, new.blob_id, new.received_at, _files(old), _files(new))
    if set(old.keywords) != set(new.keywords):
        yield KeywordsChanged(
            new.id,
            new.blob_id,
            new.received_at,
            _files(new),
            tuple(sorted(set(new.keywords) - set(old.keywords))),
            tuple(sorted(set(old.keywords) - set(new.keywords))),
        )


def _files(mail: SavedMail) -> tuple[str, ...]:
    return tuple(place.file for place in mail.mailboxes)


def _mailboxes(mail: SavedMail) -> frozenset[str]:
    return frozenset(place.id for place in mail.mailboxes)


# By what mails of the same content are matched, the best first. The first two leave no change.
_ALIKE: Final[Sequence[Callable[[SavedMail], Hashable]]] = (
    lambda mail: (_mailboxes(mail), frozenset(mail.keywords)),
    lambda mail: (frozenset(_files(mail)), frozenset(mail.keywords)),
    lambda mail: mail.id,
    lambda mail: frozenset(_files(mail)),
    _mailboxes,
    lambda _mail: None,
)
