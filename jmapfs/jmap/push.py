"""Push (RFC 8620 §7): an event stream over which the server says that something changed.

Push is a hint, never the truth: what cannot be understood is passed over, and whoever listens has
to ask what changed, also once after each connecting.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
from httpx_sse import ServerSentEvent

from jmapfs.errors import ProtocolError, ServerError, UnreachableError
from jmapfs.jmap.account import AccountCalls
from jmapfs.jmap.api import Api
from jmapfs.jmap.decoding import decode
from jmapfs.jmap.event_source import (
    EventSourceBody,
    PushSettings,
    event_source,
    open_event_source,
)
from jmapfs.jmap.event_stream import EventDecoder
from jmapfs.jmap.retrying import TransientError
from jmapfs.jmap.transport import Transport
from jmapfs.jmap.wording import printable

logger = logging.getLogger(__name__)

TYPES = ("Email", "Mailbox")
"""The types whose changes are asked for."""

# Seconds. No server pings so rarely: a larger number is in milliseconds, as Stalwart gives it.
_LONGEST_INTERVAL = 1000.0


class PushUnavailableError(ServerError):
    """The server does not push, or not in a way that can be used; this session need not ask again.

    It is not in the tree of `jmapfs.errors`, for it never ends a command: there is polling.
    """


@dataclass(frozen=True, slots=True)
class Connected:
    """The stream is open: what changes from now on is told, what changed before is not."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """Something of these types changed in the account; some of TYPES, at least one."""

    types: frozenset[str]


PushEvent: TypeAlias = Connected | StateChange


class _StateChangeDocument(msgspec.Struct):
    changed: dict[str, object]
    # Fastmail leaves it out.
    kind: str = msgspec.field(name="@type", default="StateChange")


class _PingDocument(msgspec.Struct):
    interval: float


class PushStream:
    """The events of one connection; an asynchronous iterator for one task, which ends by raising.

    A wait that is cancelled ends the stream too.
    """

    def __init__(self, body: EventSourceBody, account_id: str, transport: Transport) -> None:
        self._body = body
        self._account_id = account_id
        self._redact = transport.redact
        self._decoder = EventDecoder()
        self._events: deque[PushEvent] = deque([Connected()])

    def __aiter__(self) -> PushStream:
        return self

    async def __anext__(self) -> PushEvent:
        """Return the next event; raises UnreachableError or PushUnavailableError."""
        while not self._events:
            with _in_terms_of_push():
                chunk = await self._body.next_chunk()
                if not chunk:
                    raise TransientError(UnreachableError("the server ended the event stream"))
                for event in self._decoder.feed(chunk):
                    self._take(event)
        return self._events.popleft()

    def _take(self, event: ServerSentEvent) -> None:
        try:
            if event.event == "state":
                self._take_change(event.data.encode())
            elif event.event == "ping":
                self._take_ping(event.data.encode())
        except ProtocolError as error:
            logger.debug("passed over: %s", self._redact(str(error)))

    def _take_change(self, data: bytes) -> None:
        document = decode(data, _StateChangeDocument, "an event of the server")
        if document.kind != "StateChange":
            kind = printable(document.kind, 80)
            raise ProtocolError(f"an event of the server is a {kind}, not a StateChange")
        states = document.changed.get(self._account_id, {})
        if not isinstance(states, dict):
            raise ProtocolError("an event of the server names no types")
        if types := frozenset(states).intersection(TYPES):
            self._events.append(StateChange(types))

    def _take_ping(self, data: bytes) -> None:
        interval = decode(data, _PingDocument, "a ping of the server").interval
        if interval > _LONGEST_INTERVAL:
            interval = min(interval / 1000, _LONGEST_INTERVAL)
        self._body.ping = max(self._body.ping, interval)


class PushCalls(AccountCalls):
    """The event stream of an account."""

    def __init__(self, api: Api, account_id: str, push_settings: PushSettings) -> None:
        super().__init__(api, account_id)
        self.push_settings = push_settings

    @asynccontextmanager
    async def push(self, *, ping: float = 60.0) -> AsyncIterator[PushStream]:
        """Open an event stream: its first event is Connected, all others are StateChanges.

        `ping` is how often the server is asked for a sign of life, in seconds, rounded up to whole
        ones; below 30 it may not comply. After two such intervals of silence, or two of its own if
        they are longer, the stream counts as broken.

        Opening and iterating raise PushUnavailableError, which is final for this session, and
        UnreachableError, after which to connect again, with back-off; opening raises also
        AuthenticationError. A busy server is given the pause that all requests share: opening
        waits for its end, or raises UnreachableError at once if that is too far away.
        """
        seconds = max(1, math.ceil(ping))
        async with AsyncExitStack() as stack:
            with _in_terms_of_push():
                url = event_source(self.api.session, TYPES, seconds)
                body = await stack.enter_async_context(
                    open_event_source(url, self.push_settings, self.api.transport, ping=seconds)
                )
            yield PushStream(body, self.account_id, self.api.transport)


@contextmanager
def _in_terms_of_push() -> Iterator[None]:
    """Turn what is raised below into the few errors that matter to whoever listens."""
    try:
        yield
    except TransientError as failure:
        error = failure.error
        if isinstance(error, UnreachableError):
            raise error from failure.__cause__
        raise UnreachableError(str(error)) from error
    except ServerError as error:
        raise PushUnavailableError(f"no push: {error}") from error
