"""Mailboxes and emails (RFC 8621 §2, §4), as far as a read-only view of them needs.

Checked decoding: what a server sends becomes a typed value, or one line that says why not.

The types are msgspec structs; they hold what is required, what may be missing and what may be
null. Nothing a server sends gets past here unchecked, and nothing it sends escapes as anything
but ProtocolError.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from jmapfs.errors import ProtocolError
from jmapfs.jmap.http_errors import printable

T = TypeVar("T")

Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
"""An Id (RFC 8620 §1.2). Its alphabet is not checked: ids are never taken for anything but keys."""

UnsignedInt: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
"""An UnsignedInt (RFC 8620 §1.3)."""

State: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
"""A state string: opaque, but never empty, for an empty one could not be told from none."""

Date: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
"""A Date or UTCDate (RFC 8620 §1.4): always with its offset."""

_SHOWN = 80

# There are only as many types as this package has; making a decoder costs more than using it.
_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {}


def decode(data: bytes | msgspec.Raw, type_: type[T], what: str, *, content_type: str = "") -> T:
    """Decode the JSON in `data` as `type_`; `what` names the document in error texts.

    Raises ProtocolError when it is empty, truncated, not JSON, or of other types; the text says
    where in the document, and for what is not JSON at all its content type and first characters.
    """
    view = bytes(data)
    if not view.strip():
        raise ProtocolError(f"{what} is empty")
    try:
        document: T = _decoder(type_).decode(view)
    except msgspec.ValidationError as error:
        raise ProtocolError(
            f"{what} is not as it should be: {printable(str(error), 200)}"
        ) from None
    except RecursionError:
        raise ProtocolError(f"{what} is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = "invalid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        seen = printable(view[: 4 * _SHOWN].decode("utf-8", "replace"), _SHOWN)
        kind = f"{printable(content_type, _SHOWN)}, " if content_type else ""
        raise ProtocolError(
            f"{what} is not JSON ({printable(reason, 100)}): {kind}it begins with '{seen}'"
        ) from None
    return document


def _decoder(type_: type[Any]) -> msgspec.json.Decoder[Any]:
    if type_ not in _DECODERS:
        _DECODERS[type_] = msgspec.json.Decoder(type_)
    return _DECODERS[type_]


EMAIL_PROPERTIES = (
    "id",
    "blobId",
    "threadId",
    "mailboxIds",
    "keywords",
    "size",
    "receivedAt",
    "subject",
    "from",
)
"""The properties of an Email that are asked for."""


class MailboxRights(msgspec.Struct, frozen=True, rename="camel"):
    """What this user may do in a mailbox (RFC 8621 §2); what is not said is as a reader has it."""

    may_read_items: bool = True
    may_add_items: bool = False
    may_remove_items: bool = False
    may_set_seen: bool = False
    may_set_keywords: bool = False
    may_create_child: bool = False
    may_rename: bool = False
    may_delete: bool = False
    may_submit: bool = False


class Mailbox(msgspec.Struct, frozen=True, kw_only=True):
    """A mailbox. Its name is as the server has it: any string, even `..` or the empty one."""

    id: str
    name: str
    parent_id: str | None = None
    role: str | None = None
    sort_order: int = 0
    total_emails: int = 0
    unread_emails: int = 0
    is_subscribed: bool = False
    my_rights: MailboxRights = MailboxRights()


class Address(msgspec.Struct, frozen=True):
    """An EmailAddress (RFC 8621 §4.1.2.3)."""

    name: str | None = None
    email: str | None = None


class Email(msgspec.Struct, frozen=True, kw_only=True):
    """An email. `size` is in bytes, `received_at` is aware and in UTC.

    `mailbox_ids` and `keywords` are those the server says true of. `from_` is None where the
    message has no such header.
    """

    id: str
    blob_id: str
    thread_id: str
    mailbox_ids: frozenset[str]
    keywords: frozenset[str]
    size: int
    received_at: datetime
    subject: str | None = None
    from_: tuple[Address, ...] | None = None


class MailboxDocument(msgspec.Struct, frozen=True, rename="camel"):
    """A Mailbox as it comes: all but its id may be missing or null."""

    id: Id
    name: str | None = None
    parent_id: Id | None = None
    role: str | None = None
    sort_order: int | None = None
    total_emails: int | None = None
    unread_emails: int | None = None
    is_subscribed: bool | None = None
    my_rights: MailboxRights | None = None

    def mailbox(self) -> Mailbox:
        """Return it with what is missing filled in."""
        return Mailbox(
            id=self.id,
            name=self.name or "",
            parent_id=self.parent_id,
            role=self.role or None,
            sort_order=self.sort_order or 0,
            total_emails=max(0, self.total_emails or 0),
            unread_emails=max(0, self.unread_emails or 0),
            is_subscribed=self.is_subscribed or False,
            my_rights=self.my_rights or MailboxRights(),
        )


class EmailDocument(msgspec.Struct, frozen=True, rename="camel"):
    """An Email as it comes. What a file is made of is required: blob, size, date, mailboxes."""

    id: Id
    blob_id: Id
    mailbox_ids: dict[Id, bool]
    size: UnsignedInt
    received_at: Date
    thread_id: str | None = None
    keywords: dict[str, bool] | None = None
    subject: str | None = None
    from_: list[Address] | None = msgspec.field(name="from", default=None)

    def email(self) -> Email:
        """Return it with sets for maps and the date in UTC; raises ProtocolError for no date."""
        try:
            received_at = self.received_at.astimezone(UTC)
        except OverflowError:
            raise ProtocolError(
                f"the email {printable(self.id, 80)} was received at no possible time"
            ) from None
        return Email(
            id=self.id,
            blob_id=self.blob_id,
            thread_id=self.thread_id or "",
            mailbox_ids=frozenset(id_ for id_, true in self.mailbox_ids.items() if true),
            keywords=frozenset(word for word, true in (self.keywords or {}).items() if true),
            size=self.size,
            received_at=received_at,
            subject=self.subject,
            from_=None if self.from_ is None else tuple(self.from_),
        )


class AccountBound(msgspec.Struct, kw_only=True, rename="camel"):
    """What all responses about an account share."""

    account_id: str | None = None


AnswerType = TypeVar("AnswerType", bound=AccountBound)


class EmailGetAnswer(AccountBound, kw_only=True, rename="camel"):
    """The response to Email/get (RFC 8620 §5.1)."""

    state: State
    items: list[EmailDocument] = msgspec.field(name="list")
    not_found: list[Id] | None = None


class MailboxGetAnswer(AccountBound, kw_only=True, rename="camel"):
    """The response to Mailbox/get."""

    state: State
    items: list[MailboxDocument] = msgspec.field(name="list")
    not_found: list[Id] | None = None


class QueryAnswer(AccountBound, kw_only=True, rename="camel"):
    """The response to a /query (RFC 8620 §5.5)."""

    ids: list[Id]
    query_state: str | None = None
    total: int | None = None


class ChangesAnswer(AccountBound, kw_only=True, rename="camel"):
    """The response to a /changes (RFC 8620 §5.2), with `updatedProperties` of Mailbox/changes."""

    new_state: State
    old_state: str | None = None
    has_more_changes: bool | None = None
    created: list[Id] | None = None
    updated: list[Id] | None = None
    destroyed: list[Id] | None = None
    updated_properties: list[str] | None = None
