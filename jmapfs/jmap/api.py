"""Requests to the API of a session, and the session itself, which is fetched again when it changes.

An Api is shared by all accounts of a user: it has one transport, and with it one budget.

Method calls and their responses, as they stand in a request (RFC 8620 §3.2 to §3.6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import trio

from jmapfs.errors import DeadlineError, MethodError, ProtocolError, RequestError
from jmapfs.jmap.batch_limits import BatchBounds
from jmapfs.jmap.http import Transport
from jmapfs.jmap.http_errors import printable
from jmapfs.jmap.origins import host_of
from jmapfs.jmap.response import STALL_TIMEOUT, Request
from jmapfs.jmap.session import SESSION_HEADERS, Session, parse_session
from jmapfs.jmap.types import decode

T = TypeVar("T")

_LONGEST_WORDS = 300


@dataclass(frozen=True, slots=True)
class MethodCall:
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
class MethodResponse:
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


def encode_request(using: Sequence[str], calls: Iterable[MethodCall], *, largest: int) -> bytes:
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


def match_responses(
    calls: Sequence[MethodCall], document: ResponseDocument
) -> list[MethodResponse]:
    """Return the response to each call, in the order of the calls.

    Raises ProtocolError for a response that answers none of them, a second response to one, and a
    call without any.
    """
    waiting = {call.call_id: call for call in calls}
    if len(waiting) != len(calls):
        raise ValueError("two calls of one request have the same id")
    answered: dict[str, MethodResponse] = {}
    for name, arguments, call_id in document.method_responses:
        shown = printable(name, 80)
        call = waiting.get(call_id)
        if call is None:
            raise ProtocolError(f"the server answers a call that was not made ({shown})")
        if call_id in answered:
            raise ProtocolError(f"the server answers {call.name} twice ({shown})")
        if name == "error":
            answered[call_id] = MethodResponse(
                call.name, call_id, None, _method_error(call, arguments)
            )
        elif name == call.name:
            answered[call_id] = MethodResponse(name, call_id, arguments)
        else:
            raise ProtocolError(f"the server answers {call.name} with {shown}")
    for call in calls:
        if call.call_id not in answered:
            raise ProtocolError(f"the server does not answer {call.name}")
    return [answered[call.call_id] for call in calls]


def _method_error(call: MethodCall, arguments: msgspec.Raw) -> MethodError:
    given = decode(arguments, _ErrorArguments, f"the error the server answers {call.name} with")
    kind = printable(given.kind, 80) or "an error without a type"
    return MethodError(call.name, kind, printable(given.description or "", _LONGEST_WORDS))


DEFAULT_DEADLINE = 30.0
"""Seconds for a request, all its retries included, where the caller does not say."""

_JSON = {"Content-Type": "application/json", "Accept": "application/json"}
# A request that meets a dead connection must leave time for a second one.
_SHARE_OF_FIRST_ATTEMPT = 0.6
# Larger pages win nothing, and hold the answer in memory as a whole.
_MOST_OBJECTS = 4096


class Api:
    """Sends method calls. Safe for many tasks at once.

    `vet` is called with a session that was fetched again, before it is used; what it raises, the
    request raises that would have used it.
    """

    def __init__(self, transport: Transport, session: Session) -> None:
        self.transport = transport
        self.session = session
        self.vet: Callable[[Session], None] = _as_it_is
        self.batches = BatchBounds()
        self._refreshing = trio.Lock()
        self._seen_state = session.state
        self._stale = False
        self._learned_objects = _MOST_OBJECTS

    @property
    def max_objects_in_get(self) -> int:
        """How many ids to ask for at once: what the session says, or less if that was refused."""
        return min(self.session.limits.max_objects_in_get, self._learned_objects)

    def learn_max_objects(self, accepted: int) -> None:
        """Remember that no more than `accepted` ids are taken, whatever the session says."""
        self._learned_objects = max(1, min(self._learned_objects, accepted))

    async def request(
        self,
        calls: Sequence[MethodCall],
        *,
        deadline: float = DEFAULT_DEADLINE,
        raise_errors: bool = True,
        largest_answer: int | None = None,
    ) -> list[MethodResponse]:
        """Make the calls and return their responses in the same order.

        One HTTP request, or several in turn if the server takes fewer calls in one; a call that
        refers to another must be in the same, so more than `max_calls_in_request` calls may not
        refer. `deadline` is in seconds, for all of it. A method-level error is raised as
        MethodError, the first one in order; without `raise_errors` it is in the response.
        `largest_answer` bounds the answer to each HTTP request, in bytes.

        Raises also what Transport.fetch raises, RequestError for a request that is refused as a
        whole, and ProtocolError for an answer that does not fit the calls.
        """
        until = trio.current_time() + deadline
        patience = max(STALL_TIMEOUT, deadline * _SHARE_OF_FIRST_ATTEMPT)
        responses: list[MethodResponse] = []
        for batch in self._batches(calls):
            for response in await self._post(
                batch, until=until, patience=patience, largest=largest_answer
            ):
                if response.error is not None and raise_errors:
                    raise response.error
                responses.append(response)
        return responses

    async def current_session(self, *, until: float) -> Session:
        """Return the session, fetched again if a response told that it changed."""
        if self._stale:
            with trio.move_on_at(until) as scope:
                async with self._refreshing:
                    # Another task may have done it while this one waited.
                    if self._stale:
                        await self._refresh(until)
            if scope.cancelled_caught:
                raise DeadlineError("the session was not fetched again in time")
        return self.session

    async def _refresh(self, until: float) -> None:
        outgoing = Request(method="GET", url=self.session.url, headers=SESSION_HEADERS)
        session = parse_session(await self.transport.fetch(outgoing, until=until), self.transport)
        self.vet(session)
        self.transport.trust(session.origins)
        self.transport.allow(session.limits.max_concurrent_requests)
        self.session = session
        self._stale = False

    def _batches(self, calls: Sequence[MethodCall]) -> Iterator[Sequence[MethodCall]]:
        most = self.session.limits.max_calls_in_request
        if len(calls) > most and any(call.refers for call in calls):
            raise ValueError("calls that refer to each other do not fit into one request")
        for start in range(0, len(calls), most):
            yield calls[start : start + most]

    async def _post(
        self, calls: Sequence[MethodCall], *, until: float, patience: float, largest: int | None
    ) -> list[MethodResponse]:
        session = await self.current_session(until=until)
        needed = {name for call in calls for name in call.using}
        content = encode_request(
            session.using(needed), calls, largest=session.limits.max_size_request
        )
        outgoing = Request(
            method="POST", url=session.api_url, headers=_JSON, content=content, patience=patience
        )
        answer = await self.transport.fetch(outgoing, until=until, largest=largest)
        what = f"the answer of {host_of(session.api_url)} to {', '.join(c.name for c in calls)}"
        document = self.transport.decode(answer, ResponseDocument, what)
        self._note_state(document.session_state)
        return [self._redacted(response) for response in match_responses(calls, document)]

    def _note_state(self, state: str | None) -> None:
        # Servers behind one name may never agree on the state: each one seen is asked about once.
        if state and state not in {self.session.state, self._seen_state}:
            self._seen_state = state
            self._stale = True

    def _redacted(self, response: MethodResponse) -> MethodResponse:
        error = response.error
        if error is None:
            return response
        kind, description = map(self.transport.redact, (error.kind, error.description))
        return MethodResponse(
            response.name, response.call_id, None, MethodError(error.method, kind, description)
        )


def _as_it_is(_session: Session) -> None:
    """Take any session."""
