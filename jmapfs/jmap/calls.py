"""Method calls and their responses, as they stand in a request (RFC 8620 §3.2 to §3.6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from jmapfs.errors import MethodError, ProtocolError, RequestError
from jmapfs.jmap.decoding import decode
from jmapfs.jmap.wording import printable

T = TypeVar("T")

_LONGEST_WORDS = 300


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `name`; `call_id` is its own within a request.

    `using` are the capabilities it needs beside core and mail.
    """

    name: str
    arguments: Mapping[str, object]
    call_id: str = "0"
    using: frozenset[str] = field(default=frozenset())

    @property
    def refers(self) -> bool:
        """Whether it refers back to a result of the same request (RFC 8620 §3.7)."""
        return any(argument.startswith("#") for argument in self.arguments)


@dataclass(frozen=True, slots=True)
class Response:
    """The response to a call: its arguments, not decoded yet, or the error it met."""

    name: str
    call_id: str
    arguments: msgspec.Raw | None
    error: MethodError | None = None

    def decode(self, type_: type[T]) -> T:
        """Decode the arguments; raises the MethodError of the call, or ProtocolError."""
        if self.error is not None:
            raise self.error
        if self.arguments is None:
            raise ProtocolError(f"the server's answer to {self.name} is empty")
        return decode(self.arguments, type_, f"the server's answer to {self.name}")


class ResponseDocument(msgspec.Struct, rename="camel"):
    """The Response object (RFC 8620 §3.4)."""

    method_responses: list[tuple[str, msgspec.Raw, str]]
    session_state: str | None = None


class _ErrorArguments(msgspec.Struct):
    kind: str = msgspec.field(name="type", default="")
    description: str | None = None


def encode_request(using: Sequence[str], calls: Iterable[Call], *, largest: int) -> bytes:
    """Return the Request object as JSON (RFC 8620 §3.3).

    Raises the RequestError the server would answer if it is larger than `largest` bytes.
    """
    body = msgspec.json.encode(
        {
            "using": using,
            "methodCalls": [(call.name, dict(call.arguments), call.call_id) for call in calls],
        }
    )
    if len(body) > largest:
        raise RequestError(
            f"a request of {len(body):,} bytes is more than the server takes ({largest:,})",
            status=413,
            kind="urn:ietf:params:jmap:error:limit",
            limit="maxSizeRequest",
        )
    return body


def match_responses(calls: Sequence[Call], document: ResponseDocument) -> list[Response]:
    """Return the response to each call, in the order of the calls.

    Raises ProtocolError for a response that answers none of them, a second response to one, and a
    call without any.
    """
    waiting = {call.call_id: call for call in calls}
    if len(waiting) != len(calls):
        raise ValueError("two calls of one request have the same id")
    answered: dict[str, Response] = {}
    for name, arguments, call_id in document.method_responses:
        shown = printable(name, 80)
        call = waiting.get(call_id)
        if call is None:
            raise ProtocolError(f"the server answers a call that was not made ({shown})")
        if call_id in answered:
            raise ProtocolError(f"the server answers {call.name} twice ({shown})")
        if name == "error":
            answered[call_id] = Response(call.name, call_id, None, _method_error(call, arguments))
        elif name == call.name:
            answered[call_id] = Response(name, call_id, arguments)
        else:
            raise ProtocolError(f"the server answers {call.name} with {shown}")
    for call in calls:
        if call.call_id not in answered:
            raise ProtocolError(f"the server does not answer {call.name}")
    return [answered[call.call_id] for call in calls]


def _method_error(call: Call, arguments: msgspec.Raw) -> MethodError:
    given = decode(arguments, _ErrorArguments, f"the error the server answers {call.name} with")
    kind = printable(given.kind, 80) or "an error without a type"
    return MethodError(call.name, kind, printable(given.description or "", _LONGEST_WORDS))
