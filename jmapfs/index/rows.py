"""The values that the index returns. Sizes are in bytes, times in seconds since 1970 (UTC)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from jmapfs.blob_keys import content_key

UNKNOWN_TIME: Final = 0
"""The time of an email whose date the server sends in no usable form (`jmap.lenient`)."""


def may_be_same_time(one: int, other: int) -> bool:
    """Return whether two times can be the `receivedAt` of one email, which never changes.

    A server that sends a strange date may send the right one after its repair.
    """
    return one == other or UNKNOWN_TIME in {one, other}


@dataclass(frozen=True, slots=True)
class StaleTree:
    """Why a tree does not follow its account: the account was listed again, and most mail is gone.

    since: when this was found out.
    checked_at: when the account was last listed.
    gone, total: how many of the tree's files the server no longer has.
    reset: whether the server has used ids again, so that nothing can be downloaded by id.
    email_state: the Email state of the server that was listed last.
    reason: why the account was listed again.
    """

    since: float
    checked_at: float
    gone: int
    total: int
    reset: bool
    email_state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Shortfall:
    """The server counts more emails than it lists, even after the account was listed again.

    since: when this was found out.
    found: how many emails are known: those of the index and the bad ones.
    expected: how many the server counts.
    mailboxes: the mailboxes that lack mail: the mailbox id, how many emails are known, and how many
        the server counts.
    """

    since: float
    found: int
    expected: int
    mailboxes: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class AccountState:
    """The account that an index belongs to, and the state of the account in the index.

    location: what the user named (`jmap.identity`), empty if an earlier version made the index.
    origins: where the API and the session are, or were, the newest first.
    server: the API URL.
    moved_at: when the API was found at another URL.
    email_state, mailbox_state: RFC 8620 §1.6.3 state strings, empty before the first listing.
    complete: whether all emails have been listed once.
    consistent: false while the index is between two states of the account: a listing or a chain of
        changes is stored in part.
    synced_at: when the server was asked for the changes that led to this state.
    epoch: identifies the time during which the server's ids keep their meaning (`blob_keys`).
    blob_ids_are_sha1: whether the server's blob ids contain the SHA-1 of the content.
    stale: why the tree does not follow the account, or None if it does.
    shortfall: which mail is missing although the account was listed again, or None.
    compared_at: when the numbers of emails were last compared with those of the server.
    listed_again_at, listed_again_for: when the account was last listed again because the numbers
        differed, and a text with the difference.
    """

    location: str = ""
    origins: tuple[str, ...] = ()
    server: str = ""
    moved_at: float = 0.0
    account_id: str = ""
    account_name: str = ""
    username: str = ""
    email_state: str = ""
    mailbox_state: str = ""
    complete: bool = False
    consistent: bool = True
    synced_at: float = 0.0
    epoch: str = ""
    blob_ids_are_sha1: bool = False
    stale: StaleTree | None = None
    shortfall: Shortfall | None = None
    compared_at: float = 0.0
    listed_again_at: float = 0.0
    listed_again_for: str = ""


@dataclass(frozen=True, slots=True)
class BadEmailRow:
    """An email that the account has, but that cannot be shown.

    `since` is when it was found. `mailbox_ids` is empty if its mailboxes are not known.
    """

    id: str
    reason: str
    since: float
    mailbox_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListingProgress:
    """How far a listing of all emails has come. An interrupted listing continues from this point.

    email_state: the state before the ids were listed.
    ids: the number of ids that were listed. Version 2 listed no ids in advance: None.
    total: how many emails there are according to the server, or None.
    is_whole: whether the list of ids had no gap.
    listed: the number of emails that are fetched.
    staged: whether the emails are staged, to be compared with the tree before they are applied.
    finished: whether everything is staged.
    reset: whether the server is known to have used ids again.
    reason: why the account is listed again.
    """

    email_state: str
    ids: int | None = None
    total: int | None = None
    is_whole: bool = True
    listed: int = 0
    staged: bool = False
    finished: bool = False
    reset: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MailboxRow:
    """A mailbox.

    `number` is assigned by the index and stays the same when the mailbox id changes. `digest`
    changes whenever the name of an email in the mailbox is added or removed. `known` is false if
    emails refer to a mailbox that the server has not described.
    """

    number: int
    id: str
    name: str
    parent_id: str | None
    role: str | None
    sort_order: int
    known: bool
    digest: int


class EmailRow(msgspec.Struct, frozen=True, array_like=True):
    """An email and its files.

    `files` has, for each mailbox that the email is in, the mailbox id and the path of the file
    from the root of the tree. `stated_size` is the size that the server states, None if it is
    `size`.
    """

    id: str
    blob_id: str
    thread_id: str
    received_at: int
    size: int
    keywords: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    stated_size: int | None = None

    @property
    def server_size(self) -> int:
        """The size that the server states."""
        return self.size if self.stated_size is None else self.stated_size


@dataclass(frozen=True, slots=True)
class EmailSlice:
    """Some emails in order. `position` is where the next slice begins, or None at the end."""

    emails: list[EmailRow]
    position: int | None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file: one blob received at one time; `links` is the number of its names.

    A row is smaller than an EmailRow, because every `lookup`, `getattr` and `open` makes one.
    """

    inode: int
    blob_id: str
    size: int
    received_at: int
    links: int
    epoch: str = ""

    @property
    def content_key(self) -> str:
        """The key of the content in caches and downloads."""
        return content_key(self.epoch, self.blob_id)


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file under its name in one mailbox."""

    name: str
    inode: int
    blob_id: str
    size: int
    epoch: str = ""

    @property
    def content_key(self) -> str:
        """The key of the content in caches and downloads."""
        return content_key(self.epoch, self.blob_id)


@dataclass(frozen=True, slots=True)
class AddedBlob:
    """The blob of an email; `number` grows in the order in which emails were added."""

    number: int
    blob_id: str
    size: int
    received_at: int
    epoch: str = ""

    @property
    def content_key(self) -> str:
        """The key of the content in caches and downloads."""
        return content_key(self.epoch, self.blob_id)


@dataclass(slots=True)
class DirectoryRows:
    """The files of one mailbox in name order, as columns: a file takes 28 bytes and its name."""

    names: list[bytes] = field(default_factory=list)
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    received_at: array[int] = field(default_factory=lambda: array("q"))
    links: array[int] = field(default_factory=lambda: array("I"))

    def extend(
        self,
        names: Iterable[str],
        inodes: Iterable[int],
        sizes: Iterable[int],
        received_at: Iterable[int],
        links: Iterable[int],
    ) -> None:
        """Append columns of equal length."""
        self.names.extend(map(str.encode, names))
        self.inodes.extend(inodes)
        self.sizes.extend(sizes)
        self.received_at.extend(received_at)
        self.links.extend(links)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A name was added to or removed from mailbox number `mailbox`; `inode` is its file.

    The entries of a name alternate: it was added, removed, added again. If the name is empty, the
    size of `inode` was corrected instead.
    """

    mailbox: int
    name: str
    inode: int


@dataclass(frozen=True, slots=True)
class JournalPart:
    """The journal entries after a position, and the position after the last of them.

    `whole` is false if some of these entries were deleted, or if the position is ahead of the
    index.
    """

    entries: tuple[JournalEntry, ...]
    position: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals: `emails` and `mailboxes` of the account, `newest` its last `received_at` (or 0)."""

    emails: int
    mailboxes: int
    newest: int
