"""The JSON of JMAP as typed values: mailboxes and emails (RFC 8621 §2, §4) and method responses.

The types are msgspec structs with the members of the JSON objects. They define which members are
required, which may be missing and which may be null. Everything that a server sends is decoded by
`decode`, which raises only ProtocolError.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec

from jmapfs.errors import ProtocolError, printable

T = TypeVar("T")

Encoded: TypeAlias = bytes | bytearray | msgspec.Raw
"""JSON that is not decoded yet. A Raw is a view of the document that it is in."""

MAX_ID_LENGTH = 255

Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
"""An Id (RFC 8620 §1.2). Its alphabet is not checked: ids are only used as keys."""

UnsignedInt: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
"""An UnsignedInt (RFC 8620 §1.3)."""

Int: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**53) + 1, le=2**53 - 1)]
"""An Int (RFC 8620 §1.3)."""

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=2**16)]
"""A text for people, such as a subject. Mail servers accept headers of up to about 100 KB."""

MailboxName: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]
"""The name of a mailbox. Servers allow 100 to 500 characters, and an account has many names."""

State: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=2**16)]
"""A state string: opaque, but never empty, because the empty string stands for no state."""

Date: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
"""A Date or UTCDate (RFC 8620 §1.4): always with its offset."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


def unix_seconds(date: datetime) -> int:
    """Return a date in whole seconds since 1970."""
    # Fractions of a second are dropped: not all servers and backup tools preserve them.
    return (date - _EPOCH) // _SECOND


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
"""The properties of an Email that are requested."""

MAILBOX_PROPERTIES = ("id", "name", "parentId", "role", "sortOrder", "totalEmails")
"""The properties of a Mailbox that are requested."""

IMMUTABLE_PROPERTIES = ("id", "blobId", "size", "receivedAt", "messageId")
"""Properties of an Email that never change while its id means the same (RFC 8621 §4.1.1, §4.1.3).

A server may reject the last one.
"""

_MAX_QUOTED = 80
_MAX_READ = 16_384


# An escaped pair of surrogates, a lone surrogate, or another escape sequence of JSON. With one
# backslash at its beginning, the search takes a tenth of the time.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})"
    rb"|.)",
    re.DOTALL,
)


class Flags(frozenset[str]):
    """The keys of a JSON object whose value is true."""


class MailboxIds(Flags):
    """The `mailboxIds` of an Email: the ids whose value is true."""


class Keywords(Flags):
    """The `keywords` of an Email: the keywords whose value is true. null means no keywords."""


MOST_FLAGS = 1000
"""How many mailboxes or keywords an email may have. Each takes a row in the index."""

_SomeFlags: TypeAlias = Annotated[dict[Id, bool], msgspec.Meta(max_length=MOST_FLAGS)]
_FLAGS: dict[type, Any] = {MailboxIds: _SomeFlags, Keywords: _SomeFlags | None}

# Decoders are kept: making a decoder takes longer than using it, and there are few types.
_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {}


def decode(data: Encoded, type_: type[T], what: str, *, content_type: str = "") -> T:
    """Decode the JSON in `data` as `type_`; `what` names the document in error texts.

    Text that is not Unicode (invalid UTF-8, a lone surrogate) is replaced with U+FFFD.

    Raises ProtocolError if the document is empty, truncated, not JSON, or not of `type_`. The error
    names the place in the document or, if it is not JSON, its content type and its start.
    """
    decoder = _DECODERS.get(type_)
    if decoder is None:
        decoder = _DECODERS[type_] = msgspec.json.Decoder(type_, dec_hook=_decode_flags)
    try:
        document: T = _decode_text(decoder, data)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"{what} is not valid: {printable(str(error), 200)}") from None
    except RecursionError:
        raise ProtocolError(f"{what} is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        text = bytes(data)
        if not text.strip():
            raise ProtocolError(f"{what} is empty") from None
        reason = "invalid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        start = printable(text[:_MAX_READ].decode("utf-8", "replace"), _MAX_QUOTED, cut=True)
        kind = f"{printable(content_type, _MAX_QUOTED)}, " if content_type else ""
        raise ProtocolError(
            f"{what} is not JSON ({printable(reason, 100)}): {kind}it begins with '{start}'"
        ) from None
    return document


def _decode_text(decoder: msgspec.json.Decoder[T], data: Encoded) -> T:
    try:
        # A buffer is decoded as it is: the copy of a large one would take as much memory again.
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = bytes(data)
        replaced = text.decode("utf-8", "replace").encode()
        replaced = _ESCAPE.sub(lambda m: b"\\ufffd" if m["lone"] else m[0], replaced)
        if replaced == text:
            raise
        return decoder.decode(replaced)


def _decode_flags(type_: type[Any], value: object) -> object:
    if type_ not in _FLAGS:
        # msgspec also calls this function for the type `object`. Every value is valid for it.
        return value
    flags: dict[str, bool] = msgspec.convert(value, _FLAGS[type_]) or {}
    return type_(key for key, true in flags.items() if true)


class Mailbox(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A Mailbox (RFC 8621 §2). The name can be any string, including `..` and the empty string."""

    id: Id
    name: MailboxName | None = None
    parent_id: Id | None = None
    role: MailboxName | None = None
    sort_order: Int | None = None
    total_emails: UnsignedInt | None = None


class Address(msgspec.Struct, frozen=True):
    """An EmailAddress (RFC 8621 §4.1.2.3)."""

    name: Text | None = None
    email: Text | None = None


class Email(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An Email (RFC 8621 §4). What every file needs is required: blob, size and date.

    `size` is in bytes. `received_at` is in UTC. `from_` is None if the message has no such header.
    """

    id: Id
    blob_id: Id
    mailbox_ids: MailboxIds = MailboxIds()
    size: UnsignedInt
    received_at: Date
    thread_id: Id | None = None
    keywords: Keywords = Keywords()
    subject: Text | None = None
    from_: tuple[Address, ...] | None = msgspec.field(name="from", default=None)

    def __post_init__(self) -> None:
        """Convert the date to UTC. msgspec reports the ValueError as a ValidationError."""
        msgspec.structs.force_setattr(self, "received_at", _in_utc(self.received_at))


class EmailIdentity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The properties of an Email that are read even if it cannot be shown."""

    id: Id
    mailbox_ids: MailboxIds = MailboxIds()


class BadEmail(msgspec.Struct, frozen=True, kw_only=True):
    """An email that the account has, but that cannot be shown, and the reason in plain English.

    `is_unanswered` is true if the server has said nothing about it. If its values are known from an
    earlier answer, these are still shown.
    """

    id: str
    reason: str
    mailbox_ids: MailboxIds = MailboxIds()
    is_unanswered: bool = False


class ImmutableEmail(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An Email with IMMUTABLE_PROPERTIES only. `received_at` is in UTC.

    `message_id` is not checked, because a server may parse a malformed header in any way.
    """

    id: Id
    blob_id: Id
    size: UnsignedInt
    received_at: Date
    message_id: object = None

    def __post_init__(self) -> None:
        """Convert the date to UTC. msgspec reports the ValueError as a ValidationError."""
        msgspec.structs.force_setattr(self, "received_at", _in_utc(self.received_at))


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("receivedAt is out of range") from None


class AccountResponse(msgspec.Struct, kw_only=True, rename="camel"):
    """The base of all method responses about an account."""

    account_id: str | None = None


R = TypeVar("R", bound=AccountResponse)


class GetResponse(AccountResponse, Generic[T], kw_only=True, rename="camel"):
    """The response to a /get (RFC 8620 §5.1)."""

    state: State
    items: list[T] = msgspec.field(name="list")
    not_found: list[Id] | None = None


class RawGetResponse(AccountResponse, kw_only=True, rename="camel"):
    """The response to a /get, with objects that are still encoded."""

    state: State
    items: list[msgspec.Raw] = msgspec.field(name="list")
    not_found: list[Id] | None = None


class QueryResponse(AccountResponse, kw_only=True, rename="camel"):
    """The response to a /query (RFC 8620 §5.5)."""

    ids: list[Id]
    query_state: str | None = None
    total: UnsignedInt | None = None


class ChangesResponse(AccountResponse, kw_only=True, rename="camel"):
    """The response to a /changes (RFC 8620 §5.2), with `updatedProperties` of Mailbox/changes."""

    new_state: State
    has_more_changes: bool | None = None
    created: list[Id] | None = None
    updated: list[Id] | None = None
    destroyed: list[Id] | None = None
    # Of any type: an odd value has the meaning of null.
    updated_properties: object = None
