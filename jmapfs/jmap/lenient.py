"""Decodes objects of which single fields may be odd.

A field that is missing, null or of another type gets its default. If the field has no default, only
its object is unusable. Within a list or a map of flags, unusable items are left out. But an object
with too many flags is unusable: nobody could tell what is left out.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Annotated, Final, TypeVar, Union, get_args, get_origin

import msgspec

from jmapfs.errors import ProtocolError, printable
from jmapfs.jmap.types import MAX_ID_LENGTH, MOST_FLAGS, Date, Encoded, Flags, decode

S = TypeVar("S", bound=msgspec.Struct)

UNKNOWN_DATE: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Replaces a date that is not one of the years 1 to 9999, or that has another shape."""

_MAX_QUOTED: Final = 40
_NULL: Final = msgspec.Raw(b"null")


class UnusableError(ProtocolError):
    """A field without a default is missing or odd. `reason` names it; `sent` is the object."""

    def __init__(self, what: str, reason: str, sent: Encoded) -> None:
        super().__init__(f"{what} is not valid: {reason}")
        self.reason = reason
        self.sent = sent


class TooManyError(ProtocolError):
    """A map has too many flags."""


def decode_leniently(data: Encoded, type_: type[S], what: str) -> S:
    """Decode an object as the struct `type_`; `what` names the object in error texts.

    Raises UnusableError if a field that has no default is unusable, and ProtocolError if this is
    not a JSON object.
    """
    try:
        return decode(data, type_, what)
    except ProtocolError:
        # Each member is decoded on its own, so that only the odd ones are lost.
        members = decode(data, dict[str, msgspec.Raw], what)
    values: dict[str, object] = {}
    for field in msgspec.structs.fields(type_):
        sent = members.get(field.encode_name, _NULL)
        try:
            values[field.name] = _value(sent, field.type)
        except TooManyError as error:
            raise UnusableError(what, f"{field.encode_name} {error}", data) from None
        except ProtocolError:
            if field.required:
                reason = _reason(field.encode_name, sent)
                raise UnusableError(what, reason, data) from None
    return type_(**values)


def _reason(name: str, sent: msgspec.Raw) -> str:
    start = bytes(memoryview(sent)[: 4 * _MAX_QUOTED])
    if start == b"null":
        return f"the server sends no {name}"
    return f"{name} is not usable: {printable(start.decode('utf-8', 'replace'), _MAX_QUOTED)}"


def _value(data: msgspec.Raw, type_: type[object]) -> object:
    """Decode a value of any annotated type. Raises ProtocolError if it is unusable."""
    plain = type_
    if get_origin(type_) in {Union, UnionType}:
        plain = next(member for member in get_args(type_) if member is not NoneType)
    origin, arguments = get_origin(plain), get_args(plain)
    if origin is Annotated and arguments[0] is datetime:
        return _date(data)
    try:
        return decode(data, type_, "the value")
    except ProtocolError:
        if origin is Annotated and arguments[0] is int:
            return _integer(data, plain)
        if origin in {list, tuple}:
            return origin(_usable(data, arguments[0]))
        if not isinstance(plain, type):
            raise
        if issubclass(plain, Flags):
            return plain(_true_keys(data))
        if issubclass(plain, msgspec.Struct):
            return decode_leniently(data, plain, "the value")
        raise


def _date(data: msgspec.Raw) -> datetime:
    try:
        return decode(data, Date, "the date").astimezone(UTC)
    except (ProtocolError, OverflowError):
        decode(data, str, "the date")
        return UNKNOWN_DATE


def _integer(data: msgspec.Raw, type_: type[object]) -> object:
    """Decode a whole number that is written as a float, such as 1274.0."""
    number = decode(data, float, "the number")
    return decode(str(int(number)).encode() if number.is_integer() else data, type_, "the number")


def _true_keys(data: msgspec.Raw) -> list[str]:
    flags = decode(data, dict[str, msgspec.Raw], "the value")
    keys = [
        key
        for key, value in flags.items()
        if 0 < len(key) <= MAX_ID_LENGTH and bytes(value) == b"true"
    ]
    if len(keys) > MOST_FLAGS:
        raise TooManyError(f"has {len(keys):,} values, and the most is {MOST_FLAGS:,}")
    return keys


def _usable(data: msgspec.Raw, type_: type[object]) -> Iterator[object]:
    for item in decode(data, list[msgspec.Raw], "the value"):
        with contextlib.suppress(ProtocolError):
            yield _value(item, type_)
