"""Requests to the API of a session, and the session itself, which is fetched again when it changes.

An Api is shared by all accounts of a user: it has one transport, and with it one budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import trio

from jmapfs.errors import DeadlineError, MethodError
from jmapfs.jmap.batch_limits import BatchBounds
from jmapfs.jmap.calls import Call, Response, ResponseDocument, encode_request, match_responses
from jmapfs.jmap.incoming import STALL_TIMEOUT, Outgoing
from jmapfs.jmap.origins import host_of
from jmapfs.jmap.session import SESSION_HEADERS, Session, parse_session
from jmapfs.jmap.transport import Transport

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
        calls: Sequence[Call],
        *,
        deadline: float = DEFAULT_DEADLINE,
        raise_errors: bool = True,
        largest_answer: int | None = None,
    ) -> list[Response]:
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
        responses: list[Response] = []
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
        outgoing = Outgoing(method="GET", url=self.session.url, headers=SESSION_HEADERS)
        session = parse_session(await self.transport.fetch(outgoing, until=until), self.transport)
        self.vet(session)
        self.transport.trust(session.origins)
        self.transport.allow(session.limits.max_concurrent_requests)
        self.session = session
        self._stale = False

    def _batches(self, calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
        most = self.session.limits.max_calls_in_request
        if len(calls) > most and any(call.refers for call in calls):
            raise ValueError("calls that refer to each other do not fit into one request")
        for start in range(0, len(calls), most):
            yield calls[start : start + most]

    async def _post(
        self, calls: Sequence[Call], *, until: float, patience: float, largest: int | None
    ) -> list[Response]:
        session = await self.current_session(until=until)
        needed = {name for call in calls for name in call.using}
        content = encode_request(
            session.using(needed), calls, largest=session.limits.max_size_request
        )
        outgoing = Outgoing(
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

    def _redacted(self, response: Response) -> Response:
        error = response.error
        if error is None:
            return response
        kind, description = map(self.transport.redact, (error.kind, error.description))
        return Response(
            response.name, response.call_id, None, MethodError(error.method, kind, description)
        )


def _as_it_is(_session: Session) -> None:
    """Take any session."""
