"""JMAP method calls and their responses, as JSON (RFC 8620 §3.2 to §3.6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from jmapfs.errors import JmapfsError, MethodError, ProtocolError, RequestError, printable
from jmapfs.jmap.http_errors import LIMIT
from jmapfs.jmap.lenient import S, decode_leniently
from jmapfs.jmap.origins import host_of
from jmapfs.jmap.session import CORE, MAIL, Session
from jmapfs.jmap.types import decode

T = TypeVar("T")

_MAX_DESCRIPTION = 300


@dataclass(frozen=True, slots=True)
class MethodCall:
    """A call of the JMAP method `name`. `call_id` is unique within a request.

    `using` contains the capabilities that the method needs, apart from core and mail.
    """

    name: str
    arguments: Mapping[str, object]
    call_id: str = "0"
    using: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class MethodResponse:
    """The response to a call: either the arguments, still encoded, or an error."""

    name: str
    call_id: str
    arguments: msgspec.Raw | None
    error: MethodError | None = None

    def decode(self, type_: type[T]) -> T:
        """Decode the arguments. Raises ProtocolError, or the MethodError if the call failed."""
        return decode(self._sent(), type_, f"the server's response to {self.name}")

    @property
    def size(self) -> int:
        """The bytes of the encoded arguments."""
        return 0 if self.arguments is None else len(self.arguments)

    def decode_leniently(self, type_: type[S]) -> S:
        """Decode the arguments, odd ones as their defaults. Raises the same errors as `decode`."""
        return decode_leniently(self._sent(), type_, f"the server's response to {self.name}")

    def _sent(self) -> msgspec.Raw:
        if self.error is not None:
            raise self.error
        if self.arguments is None:
            raise ProtocolError(f"the server's response to {self.name} is empty")
        return self.arguments


class ResponseDocument(msgspec.Struct, rename="camel"):
    """The Response object (RFC 8620 §3.4)."""

    method_responses: list[tuple[str, msgspec.Raw, str]]
    # Of any type: an odd one says nothing about the session.
    session_state: object = None


class _ErrorArguments(msgspec.Struct):
    kind: str = msgspec.field(name="type", default="")
    description: str | None = None


def is_too_large(error: JmapfsError) -> bool:
    """Return whether the server rejected a request as too large. A smaller one may succeed."""
    if isinstance(error, MethodError):
        return error.kind == "requestTooLarge"
    if isinstance(error, RequestError):
        return error.status == 413 or error.limit in {"maxSizeRequest", "maxObjectsInGet"}
    return False


def encode_request(session: Session, calls: Sequence[MethodCall]) -> bytes:
    """Return the Request object as JSON (RFC 8620 §3.3).

    If the request is larger than the server accepts, this function raises the RequestError that
    sending the request would cause.
    """
    needed = {name for call in calls for name in call.using}
    content = msgspec.json.encode(
        {
            "using": [CORE, MAIL, *sorted(needed & session.capabilities.keys() - {CORE, MAIL})],
            "methodCalls": [(call.name, dict(call.arguments), call.call_id) for call in calls],
        }
    )
    largest = session.limits.max_size_request
    if len(content) > largest:
        raise RequestError(
            f"a request of {len(content):,} bytes is more than {host_of(session.api_url)} accepts"
            f" ({largest:,})",
            status=413,
            kind=LIMIT,
            limit="maxSizeRequest",
        )
    return content


def match_responses(
    calls: Sequence[MethodCall], document: ResponseDocument
) -> list[MethodResponse]:
    """Return the response to each call, in the order of the calls.

    Raises ProtocolError if a response belongs to no call, or a call has no response or two.
    """
    pending = {call.call_id: call for call in calls}
    if len(pending) != len(calls):
        raise ValueError("two calls of one request have the same id")
    responses: dict[str, MethodResponse] = {}
    for name, arguments, call_id in document.method_responses:
        call = pending.get(call_id)
        if call is None:
            raise ProtocolError(
                f"the server answers a call that was not made: {printable(name, 80)}"
            )
        if call_id in responses:
            raise ProtocolError(f"the server answers {call.name} twice")
        if name == "error":
            error = _method_error(call, arguments)
            responses[call_id] = MethodResponse(call.name, call_id, None, error)
        elif name == call.name:
            responses[call_id] = MethodResponse(name, call_id, arguments)
        else:
            raise ProtocolError(f"the server answers {call.name} with {printable(name, 80)}")
    for call in calls:
        if call.call_id not in responses:
            raise ProtocolError(f"the server does not answer {call.name}")
    return [responses[call.call_id] for call in calls]


def _method_error(call: MethodCall, arguments: msgspec.Raw) -> MethodError:
    sent = decode(arguments, _ErrorArguments, f"the error that the server sends for {call.name}")
    kind = sent.kind or "an error without a type"
    description = printable(sent.description or "", _MAX_DESCRIPTION)
    return MethodError(call.name, kind, description)
