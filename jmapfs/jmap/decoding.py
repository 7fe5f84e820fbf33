"""Checked decoding: what a server sends becomes a typed value, or one line that says why not.

The types are msgspec structs; they hold what is required, what may be missing and what may be
null. Nothing a server sends gets past here unchecked, and nothing it sends escapes as anything
but ProtocolError.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from jmapfs.errors import ProtocolError
from jmapfs.jmap.wording import printable

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
