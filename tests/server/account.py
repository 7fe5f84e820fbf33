"""One account in memory: its mailboxes and emails, and the operations that change them.

Tests use the operations in place of another mail client. Each operation advances the states it
affects once and is announced to the push streams. Call them in the thread of the server; from
another process, `tests.server.control_client` has the same methods.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from .blobs import BlobScheme, BlobStore
from .changes import Change, ChangeLog
from .headers import Header, message_ids, parse_header
from .model import Email, Mailbox, utc_date

TYPES = ("Mailbox", "Email", "Thread")
SOME_DAY = "2024-03-01T10:15:00Z"


OPERATIONS = frozenset(
    {
        *("create_mailbox", "rename_mailbox", "move_mailbox", "destroy_mailbox"),
        *("change_mailbox_ids", "add_email", "add_emails", "copy_email", "remove_email"),
        *("move_email", "set_mailboxes", "set_keywords", "destroy_email", "destroy_emails"),
        *("change_email_ids", "forget_changes", "reset"),
    }
)


class OperationError(Exception):
    """The operation is unknown, or its arguments are invalid."""


@dataclass(frozen=True, slots=True)
class NewEmail:
    """An email for `Account.add_emails`."""

    raw: bytes
    mailbox_ids: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    received_at: str = SOME_DAY
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All ids of a query, in order, and the position of each."""

    ids: list[str]
    positions: dict[str, int]


class Account:
    """A mail account. Its ids are opaque and unordered, but the same in every run."""

    def __init__(
        self,
        account_id: str = "Aprimary",
        name: str = "alice@example.org",
        *,
        is_personal: bool = True,
        is_read_only: bool = False,
        blob_scheme: BlobScheme = "plain",
        log_limit: int = 10_000,
    ) -> None:
        self.id = account_id
        self.name = name
        self.is_personal = is_personal
        self.is_read_only = is_read_only
        self.mailboxes: dict[str, Mailbox] = {}
        self.emails: dict[str, Email] = {}
        self.threads: dict[str, tuple[str, ...]] = {}
        self.members: dict[str, dict[str, None]] = {}  # email ids by mailbox, in a dict as a set
        self.blobs = BlobStore(blob_scheme)
        epoch = secrets.token_hex(3)
        self.logs = {kind: ChangeLog(epoch, log_limit) for kind in TYPES}
        self.watchers: list[Callable[[Account], None]] = []
        self.make_header: Callable[[int], Header] | None = None  # for generated blobs
        self._thread_of_message: dict[bytes, str] = {}
        self._ids_created = 0
        self._numbers: Counter[str] | None = None  # of ids by prefix, after a reset
        self._listings: dict[tuple[str | None, bool], Listing] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to the running server."""
        return {**self.__dict__, "watchers": [], "_listings": {}}

    @property
    def states(self) -> dict[str, str]:
        """The current state of each type of object."""
        return {kind: log.state for kind, log in self.logs.items()}

    # Mailboxes

    def create_mailbox(
        self,
        name: str,
        parent_id: str | None = None,
        role: str | None = None,
        *,
        mailbox_id: str | None = None,
        sort_order: int = 0,
        is_subscribed: bool = True,
        may_read_items: bool = True,
    ) -> str:
        """Create a mailbox; its parent may be missing, itself, or one of its descendants."""
        new_id = mailbox_id or self._new_id("P")
        self.mailboxes[new_id] = Mailbox(
            new_id, name, parent_id, role, sort_order, is_subscribed, may_read_items
        )
        self.members[new_id] = {}
        self.logs["Mailbox"].record(new_id, Change.CREATED)
        self._changed()
        return new_id

    def rename_mailbox(self, mailbox_id: str, name: str) -> None:
        self.mailboxes[mailbox_id].name = name
        self.logs["Mailbox"].record(mailbox_id, Change.UPDATED)
        self._changed()

    def move_mailbox(self, mailbox_id: str, parent_id: str | None) -> None:
        self.mailboxes[mailbox_id].parent_id = parent_id
        self.logs["Mailbox"].record(mailbox_id, Change.UPDATED)
        self._changed()

    def destroy_mailbox(self, mailbox_id: str) -> None:
        """Destroy a mailbox and the emails only in it; its children stay, without a parent."""
        del self.mailboxes[mailbox_id]
        for email_id in list(self.members[mailbox_id]):
            left = self.emails[email_id].mailbox_ids - {mailbox_id}
            if left:
                self._set_mailboxes(email_id, left)
            else:
                self._destroy(email_id)
        del self.members[mailbox_id]
        self.logs["Mailbox"].record(mailbox_id, Change.DESTROYED)
        self._changed()

    def change_mailbox_ids(self) -> dict[str, str]:
        """Give every mailbox a new id, as a migration does; return the new ids by old id."""
        renamed = {old: self._new_id("P") for old in self.mailboxes}
        for old, new in renamed.items():
            box = self.mailboxes.pop(old)
            box.id = new
            box.parent_id = renamed.get(box.parent_id or "", box.parent_id)
            self.mailboxes[new] = box
            self.members[new] = self.members.pop(old)
            self.logs["Mailbox"].record(old, Change.DESTROYED)
            self.logs["Mailbox"].record(new, Change.CREATED)
        for email in self.emails.values():
            email.mailbox_ids = frozenset(renamed[each] for each in email.mailbox_ids)
            self.logs["Email"].record(email.id, Change.UPDATED)
        self._changed()
        return renamed

    # Emails

    def add_email(
        self,
        raw: bytes,
        mailbox_ids: Iterable[str],
        keywords: Iterable[str] = (),
        received_at: str | datetime = SOME_DAY,
        *,
        email_id: str | None = None,
    ) -> str:
        """Deliver a message; return its Email id."""
        return self.add_emails(
            [NewEmail(raw, tuple(mailbox_ids), tuple(keywords), utc_date(received_at), email_id)]
        )[0]

    def add_emails(self, emails: Iterable[NewEmail]) -> list[str]:
        """Deliver several messages in one change of the state; return their Email ids."""
        created = []
        for each in emails:
            if not each.mailbox_ids:
                raise ValueError("an email needs at least one mailbox")
            new_id = each.id or self._new_id("M")
            email = Email(
                id=new_id,
                blob_id=self.blobs.add(each.raw),
                thread_id=self._thread_for(message_ids(each.raw)),
                size=len(each.raw),
                received_at=utc_date(each.received_at),
                mailbox_ids=frozenset(each.mailbox_ids),
                keywords=frozenset(each.keywords),
            )
            self.insert(email)
            self.logs["Email"].record(new_id, Change.CREATED)
            only_one = len(self.threads[email.thread_id]) == 1
            self.logs["Thread"].record(
                email.thread_id, Change.CREATED if only_one else Change.UPDATED
            )
            self._record_counts(email.mailbox_ids)
            created.append(new_id)
        self._changed()
        return created

    def copy_email(self, email_id: str, mailbox_id: str) -> None:
        """Add an email to another mailbox."""
        self.set_mailboxes(email_id, self.emails[email_id].mailbox_ids | {mailbox_id})

    def remove_email(self, email_id: str, mailbox_id: str) -> None:
        """Remove an email from one of its mailboxes."""
        self.set_mailboxes(email_id, self.emails[email_id].mailbox_ids - {mailbox_id})

    def move_email(self, email_id: str, from_id: str, to_id: str) -> None:
        self.set_mailboxes(email_id, (self.emails[email_id].mailbox_ids - {from_id}) | {to_id})

    def set_mailboxes(self, email_id: str, mailbox_ids: Iterable[str]) -> None:
        """Set the mailboxes of an email."""
        wanted = frozenset(mailbox_ids)
        if not wanted:
            raise ValueError("an email needs at least one mailbox")
        self._set_mailboxes(email_id, wanted)
        self._changed()

    def set_keywords(self, email_id: str, keywords: Iterable[str]) -> None:
        email = self.emails[email_id]
        email.keywords = frozenset(keywords)
        self.logs["Email"].record(email_id, Change.UPDATED)
        self._record_counts(email.mailbox_ids)
        self._changed()

    def destroy_email(self, email_id: str) -> None:
        self.destroy_emails([email_id])

    def destroy_emails(self, email_ids: Iterable[str]) -> None:
        """Destroy several emails in one change of the state."""
        for email_id in list(email_ids):
            self._destroy(email_id)
        self._changed()

    def change_email_ids(self, email_ids: Iterable[str] | None = None) -> dict[str, str]:
        """Give emails (None: all) new ids and keep their blobs; return the new ids by old id."""
        renamed = {}
        for old in list(self.emails if email_ids is None else email_ids):
            email = self.emails[old]
            self._unlink(email)
            email.id = renamed[old] = self._new_id("M")
            self.insert(email)
            self.logs["Email"].record(old, Change.DESTROYED)
            self.logs["Email"].record(email.id, Change.CREATED)
        for thread_id in {self.emails[new].thread_id for new in renamed.values()}:
            self.logs["Thread"].record(thread_id, Change.UPDATED)
        self._changed()
        return renamed

    def forget_changes(self) -> None:
        """Clear the change logs: every old state gets cannotCalculateChanges."""
        for log in self.logs.values():
            log.forget()

    def use_sha1_blob_ids(self) -> None:
        """Give all blobs ids that are SHA-1s, as on Cyrus, without an entry in the change log."""
        if self.blobs.scheme != "cyrus":
            renamed = self.blobs.use_sha1_ids()
            for email in self.emails.values():
                email.blob_id = renamed[email.blob_id]

    def reset(
        self,
        mails: Sequence[bytes],
        *,
        received_at: Sequence[str] | None = None,
        equal_sizes: bool = False,
    ) -> list[str]:
        """Replace all mail, like a server that was set up again; return the new Email ids.

        From now on, Email ids, thread ids and blob ids are numbered from 1: M1, T1, B1 and so on.
        Call it twice to reuse ids. The mailboxes stay, and the new mails are in the first of them
        (an Inbox is created if there is none). All old states are unknown.

        With `received_at`, the mails have these dates, otherwise the dates of the mails that had
        their numbers before, or one date for all. With `equal_sizes`, each mail is extended to the
        size of the mail that had its number before.

        Raises:
            ValueError: a mail is larger than its predecessor, or has no predecessor.
        """
        if not self.mailboxes:
            self.create_mailbox("Inbox", role="inbox")
        before = {email.id: email for email in self.emails.values()}
        self.emails.clear()
        self.threads.clear()
        self._thread_of_message.clear()
        for members in self.members.values():
            members.clear()
        self.blobs.number_from_1()
        self._numbers = Counter()
        epoch = secrets.token_hex(3)
        self.logs = {kind: ChangeLog(epoch, log.limit) for kind, log in self.logs.items()}
        inbox = next(iter(self.mailboxes))
        new = []
        for number, raw in enumerate(mails):
            old = before.get(f"M{number + 1}")
            date = SOME_DAY if old is None else old.received_at
            if received_at is not None:
                date = received_at[number]
            if equal_sizes and (old is None or old.size < len(raw)):
                raise ValueError(f"no earlier mail is large enough for mail {number + 1}")
            size = old.size if equal_sizes and old is not None else len(raw)
            new.append(NewEmail(raw.ljust(size), (inbox,), received_at=date))
        return self.add_emails(new)

    # Queries of the methods

    def header(self, email: Email) -> Header:
        """Return the header; it is parsed once, because parsing takes almost a millisecond."""
        number = self.blobs.number_of(email.blob_id)
        if number is not None and self.make_header is not None:
            return self.make_header(number)
        if email.header is None:
            email.header = parse_header(self.blobs.read(email.blob_id) or b"")
        return email.header

    def listing(self, mailbox_id: str | None, *, ascending: bool) -> Listing:
        """Return the emails of a mailbox (None: all) by receivedAt, ties in an arbitrary order."""
        cached = self._listings.get((mailbox_id, ascending))
        if cached is None:
            chosen = self.emails if mailbox_id is None else self.members.get(mailbox_id, {})
            ids = sorted(
                chosen,
                key=lambda i: (self.emails[i].received_at, zlib.crc32(i.encode())),
                reverse=not ascending,
            )
            cached = Listing(ids, {i: position for position, i in enumerate(ids)})
            self._listings[mailbox_id, ascending] = cached
        return cached

    def insert(self, email: Email) -> None:
        """Add an email without an entry in the change log, to fill a new account."""
        self.emails[email.id] = email
        for mailbox_id in email.mailbox_ids:
            self.members[mailbox_id][email.id] = None
        self.threads[email.thread_id] = (*self.threads.get(email.thread_id, ()), email.id)
        self._listings.clear()

    # Internals

    def _new_id(self, prefix: str) -> str:
        if self._numbers is not None:
            self._numbers[prefix] += 1
            return f"{prefix}{self._numbers[prefix]}"
        self._ids_created += 1
        seed = f"{self.id}/{self._ids_created}".encode()
        return prefix + hashlib.blake2s(seed, digest_size=6).hexdigest()

    def _thread_for(self, message_ids: list[bytes]) -> str:
        known = (self._thread_of_message[i] for i in message_ids if i in self._thread_of_message)
        thread_id = next(known, None) or self._new_id("T")
        self._thread_of_message.update(dict.fromkeys(message_ids, thread_id))
        return thread_id

    def _set_mailboxes(self, email_id: str, wanted: frozenset[str]) -> None:
        email = self.emails[email_id]
        before = email.mailbox_ids
        for mailbox_id in wanted - before:
            self.members[mailbox_id][email_id] = None
        for mailbox_id in before - wanted:
            del self.members[mailbox_id][email_id]
        email.mailbox_ids = wanted
        self.logs["Email"].record(email_id, Change.UPDATED)
        self._record_counts(wanted ^ before)

    def _destroy(self, email_id: str) -> None:
        email = self.emails[email_id]
        self._unlink(email)
        self.blobs.release(email.blob_id)
        self.logs["Email"].record(email_id, Change.DESTROYED)
        gone = email.thread_id not in self.threads
        self.logs["Thread"].record(email.thread_id, Change.DESTROYED if gone else Change.UPDATED)
        self._record_counts(email.mailbox_ids)

    def _unlink(self, email: Email) -> None:
        del self.emails[email.id]
        for mailbox_id in email.mailbox_ids:
            del self.members[mailbox_id][email.id]
        left = tuple(i for i in self.threads[email.thread_id] if i != email.id)
        if left:
            self.threads[email.thread_id] = left
        else:
            del self.threads[email.thread_id]

    def _record_counts(self, mailbox_ids: Iterable[str]) -> None:
        for mailbox_id in sorted(mailbox_ids):
            if mailbox_id in self.mailboxes:
                self.logs["Mailbox"].record(mailbox_id, Change.COUNTED)

    def _changed(self) -> None:
        self._listings.clear()
        for watcher in self.watchers:
            watcher(self)


def operate(account: Account, method: str, arguments: dict[str, Any]) -> Any:
    """Execute an operation; its bytes arguments are in base64."""
    if method not in OPERATIONS:
        raise OperationError(f"unknown operation: {method}")
    arguments = dict(arguments)
    try:
        if method == "add_email":
            arguments["raw"] = base64.b64decode(arguments["raw"])
        elif method == "reset":
            arguments["mails"] = [base64.b64decode(each) for each in arguments["mails"]]
        elif method == "add_emails":
            arguments["emails"] = msgspec.convert(arguments["emails"], list[NewEmail])
        return getattr(account, method)(**arguments)
    except (LookupError, TypeError, ValueError) as error:
        raise OperationError(f"{method}: {type(error).__name__}: {error}") from error
