"""What goes into the index and what comes out of it, as plain values."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec


@dataclass(frozen=True, slots=True)
class MailboxRecord:
    """A mailbox as the server describes it (RFC 8621 §2), as far as the tree needs it."""

    id: str
    name: str
    parent_id: str | None = None
    role: str | None = None
    sort_order: int = 0


@dataclass(frozen=True, slots=True)
class MailboxRow:
    """A mailbox in the index, with what its directory's times are made of.

    `number` is the index's own, and outlives a change of the mailbox id. `digest` changes with
    every name that comes into or leaves the mailbox. `known` is false while emails refer to a
    mailbox that the server has not described.
    """

    number: int
    id: str
    name: str
    parent_id: str | None
    role: str | None
    sort_order: int
    known: bool
    digest: int


@dataclass(frozen=True, slots=True)
class EmailRecord:
    """An email as the index keeps it.

    `received_at` is in seconds since 1970 (UTC), `size` in bytes, `stem` its file name without
    the ending.
    """

    id: str
    blob_id: str
    thread_id: str
    received_at: int
    size: int
    stem: str
    mailbox_ids: tuple[str, ...]
    keywords: tuple[str, ...] = ()


class EmailRow(msgspec.Struct, frozen=True, array_like=True):
    """An email and its files; `size` in bytes, `received_at` in seconds since 1970 (UTC).

    `files` has, for each mailbox that the email is in, the mailbox id and the path of the file
    from the root of the tree.
    """

    id: str
    blob_id: str
    thread_id: str
    received_at: int
    size: int
    keywords: tuple[str, ...]
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class EmailSlice:
    """Some emails in order; the next slice begins at `position`, None after the last."""

    emails: list[EmailRow]
    position: int | None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of the tree: one blob received at one time, under one or several names.

    `size` in bytes, `received_at` in seconds since 1970 (UTC); `links` counts its names.
    """

    inode: int
    blob_id: str
    size: int
    received_at: int
    links: int


@dataclass(slots=True)
class DirectoryRows:
    """The files of one mailbox in name order, by columns: a row costs its name and 28 bytes."""

    names: list[bytes] = field(default_factory=list)
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    received_at: array[int] = field(default_factory=lambda: array("q"))
    links: array[int] = field(default_factory=lambda: array("I"))

    def extend(self, rows: Iterable[tuple[str, int, int, int, int]]) -> None:
        """Append rows of name, inode, size, received_at and links."""
        for name, inode, size, received_at, links in rows:
            self.names.append(name.encode())
            self.inodes.append(inode)
            self.sizes.append(size)
            self.received_at.append(received_at)
            self.links.append(links)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class AccountState:
    """Which state of which account the index holds.

    `server` is the API URL and `account_id` the account the index belongs to. The states are
    RFC 8620 §1.6.3 state strings, empty before the first listing. `complete` is true once a
    listing has come to its end. `consistent` is false while the index is between two states of
    the account: some of a chain of changes, or of a listing, is in it and the rest is not.
    `synced_at` is when the server was asked for what led to this state, in seconds since 1970.
    """

    server: str = ""
    account_id: str = ""
    account_name: str = ""
    username: str = ""
    email_state: str = ""
    mailbox_state: str = ""
    complete: bool = False
    consistent: bool = True
    synced_at: float = 0.0


@dataclass(frozen=True, slots=True)
class ListingProgress:
    """How far a listing of all emails has come, so that it can go on after an interruption.

    `email_state` is the state from before its first page, `anchor` the id of the last email of
    the last durable page (None: no page yet), `listed` how many emails are in these pages.
    """

    email_state: str
    anchor: str | None = None
    listed: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals: `emails` and `mailboxes` of the account, `newest` its last `received_at` (or 0)."""

    emails: int
    mailboxes: int
    newest: int
