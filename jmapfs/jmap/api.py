"""The API of one account: sends method calls (RFC 8620 §3) and returns the responses.

An Api also keeps the session up to date: every response contains the state of the session. When
that state changes, the session is fetched again, but ever more seldom if it changes all the time.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import trio

from jmapfs.backoff import Pace
from jmapfs.deadline import Deadline
from jmapfs.errors import (
    ConfigError,
    JmapfsError,
    MethodError,
    ProtocolError,
    RequestError,
    printable,
)
from jmapfs.jmap.answers import (
    MOST_OBJECTS,
    AnswerLimit,
    AnswerTooLargeError,
    answer_limit,
    run_decoder,
)
from jmapfs.jmap.http import Transport
from jmapfs.jmap.identity import AccountIdentity, merge_origins
from jmapfs.jmap.method_calls import (
    MethodCall,
    MethodResponse,
    ResponseDocument,
    encode_request,
    is_too_large,
    match_responses,
)
from jmapfs.jmap.response import STALL_TIMEOUT, HttpRequest, HttpResponse, RequestKind
from jmapfs.jmap.session import SESSION_HEADERS, Session, SessionAccount, read_session
from jmapfs.jmap.types import R

_log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_DEADLINE = 30.0
"""Seconds for a request with all its retries, if the caller does not say."""

_JSON = {"Content-Type": "application/json", "Accept": "application/json"}
# The first attempt gets only this share of the time, so that there is time for a second attempt if
# the connection of the first is dead.
_SHARE_OF_FIRST_ATTEMPT = 0.6
# James fails for a moment while mail is destroyed. RFC 8620 §3.6.2 allows a retry.
_TEMPORARY = frozenset({"serverFail", "serverUnavailable"})
_RETRY_PAUSES = (0.2, 1.0)
# Some servers, or several behind one host name, report another session state in each response.
_FIRST_REFRESH_PAUSE = 1.0
_LONGEST_REFRESH_PAUSE = 60.0


class Api:
    """Makes method calls for one account. Safe for many tasks at once.

    `session` is the session that was fetched last. `traffic` counts what was sent and received.
    """

    def __init__(self, transport: Transport, session: Session, account_id: str) -> None:
        self.transport = transport
        self.traffic = transport.traffic
        self.session = session
        self.account_id = account_id
        self._refreshing = trio.Lock()
        self._seen_state = session.state
        self._stale = False
        self._refreshes = Pace(_FIRST_REFRESH_PAUSE, _LONGEST_REFRESH_PAUSE)
        self._learned_objects = MOST_OBJECTS

    @property
    def account(self) -> SessionAccount:
        """The account, as the current session describes it."""
        return self.session.accounts[self.account_id]

    @property
    def identity(self) -> AccountIdentity:
        """Which account this is, as the current session describes it."""
        session = self.session
        origins = merge_origins([session.api_url, session.url])
        return AccountIdentity(session.location, origins, session.username, self.account_id)

    @property
    def concurrency(self) -> int:
        """How many requests may currently be in flight at the same time."""
        return self.transport.concurrency

    @property
    def blob_ids_are_sha1(self) -> bool:
        """Whether blob ids of `G` and 40 hex digits contain the SHA-1 of the blob (Cyrus)."""
        return self.session.blob_ids_are_sha1

    @property
    def max_objects_in_get(self) -> int:
        """How many ids to request at once.

        This is the limit of the session, or a lower limit if the server has rejected a request.
        """
        return min(self.session.limits.max_objects_in_get, self._learned_objects)

    async def request(
        self,
        calls: Sequence[MethodCall],
        *,
        deadline: Deadline | None = None,
        raise_errors: bool = True,
        limit: AnswerLimit | None = None,
    ) -> list[MethodResponse]:
        """Make the calls and return their responses in the same order.

        The calls are sent in one HTTP request. If the server does not accept so many calls in one
        request, several are sent in turn. Calls that refer to each other must be in one request, so
        their number must not exceed `max_calls_in_request`.

        All requests together end at the `deadline`. Without `deadline`, each takes at most
        DEFAULT_DEADLINE seconds, apart from the time that received bytes earn, and pauses that the
        server asks for do not count (see Transport.fetch). With `raise_errors`, the first
        method-level error is raised as MethodError. Otherwise the errors are in the responses.
        `limit` is the largest response to each HTTP request; without it, `answer_limit` decides.

        Raises:
            RequestError: the request as a whole was rejected.
            AnswerTooLargeError: the response is too large.
            ProtocolError: the response does not match the calls.
            JmapfsError: any error of Transport.fetch.
        """
        seconds = DEFAULT_DEADLINE if deadline is None else deadline.left
        first_byte_timeout = max(STALL_TIMEOUT, seconds * _SHARE_OF_FIRST_ATTEMPT)
        responses: list[MethodResponse] = []
        for batch in self._split(calls):
            session = await self.current_session(deadline or Deadline(seconds))
            request = HttpRequest(
                method="POST",
                url=session.api_url,
                kind=RequestKind.API,
                headers=_JSON,
                content=encode_request(session, batch),
                first_byte_timeout=first_byte_timeout,
            )
            allowed = limit or answer_limit((call.name, call.arguments) for call in batch)
            http_response = await self.transport.fetch(
                request,
                deadline=deadline or Deadline(seconds),
                largest=allowed.bytes,
                patient=deadline is None,
            )
            document = await run_decoder(
                partial(self._decode_document, http_response, batch, allowed),
                len(http_response.content),
            )
            self._note_state(document.session_state)
            for response in match_responses(batch, document):
                if response.error is not None and raise_errors:
                    raise response.error
                responses.append(response)
        return responses

    async def current_session(self, deadline: Deadline) -> Session:
        """Return the session. Fetch it again first if a response has reported a change.

        If the session has changed often, it is fetched again only after a pause. If the server is
        too busy to return it, the present session is used: its URLs are probably the same.

        Raises ConfigError if the session has another user or lacks the account, and JmapfsError
        if the session could not be fetched.
        """
        if self._must_refresh:
            with deadline.enforced("the session was not fetched again in time"):
                async with self._refreshing:
                    # Another task may have fetched the session while this one waited.
                    if self._must_refresh:
                        await self._refresh(deadline)
        return self.session

    @property
    def _must_refresh(self) -> bool:
        return self._stale and trio.current_time() >= self._refreshes.next_at

    def _call(self, name: str, arguments: Mapping[str, object], call_id: str = "0") -> MethodCall:
        return MethodCall(name, {"accountId": self.account_id, **arguments}, call_id)

    def _decode_document(
        self, response: HttpResponse, calls: Sequence[MethodCall], allowed: AnswerLimit
    ) -> ResponseDocument:
        what = f"the server's response to {', '.join(call.name for call in calls)}"
        # Almost every value of a JSON document has a comma before it.
        if response.content.count(b",") > allowed.values:
            raise AnswerTooLargeError(f"{what} has more than {allowed.values:,} values")
        return self.transport.decode(response, ResponseDocument, what)

    async def _decode(
        self, response: MethodResponse, type_: type[R], *, lenient: bool = False
    ) -> R:
        decode_as = response.decode_leniently if lenient else response.decode
        decoded = await run_decoder(partial(decode_as, type_), response.size)
        return self._checked(response, decoded)

    def _checked(self, response: MethodResponse, decoded: R) -> R:
        if decoded.account_id is not None and decoded.account_id != self.account_id:
            raise ProtocolError(f"the server answers {response.name} for another account")
        return decoded

    async def _request_one(self, name: str, arguments: Mapping[str, object]) -> MethodResponse:
        """Make one call; repeat it after short pauses if the server fails temporarily.

        This is not for /changes: some servers answer `serverFail` for an unknown state.
        """
        call = self._call(name, arguments)
        for pause in _RETRY_PAUSES:
            [response] = await self.request([call], raise_errors=False)
            if response.error is None or response.error.kind not in _TEMPORARY:
                break
            await trio.sleep(pause)
        else:
            [response] = await self.request([call], raise_errors=False)
        if response.error is not None:
            raise response.error
        return response

    async def _with_fewer(self, size: int, request: Callable[[int], Awaitable[T]]) -> T:
        """Request `size` objects at once. If the server rejects so many, request fewer.

        Also request fewer if the response is too large. Then one of the objects is the reason, and
        later requests may have as many objects as before.
        """
        size = max(1, min(size, self.max_objects_in_get))
        while True:
            try:
                return await request(size)
            except AnswerTooLargeError:
                if size == 1:
                    raise
                size //= 2
            except (MethodError, RequestError) as error:
                if size == 1 or not is_too_large(error):
                    raise
                size //= 2
                self._learned_objects = max(1, min(self._learned_objects, size))

    async def _get_first(
        self, ids: Sequence[str], get: Callable[[Sequence[str]], Awaitable[T]]
    ) -> tuple[Sequence[str], T]:
        """Get as many of the first `ids` as the server accepts at once. Also return these ids."""

        async def get_some(size: int) -> tuple[Sequence[str], T]:
            return ids[:size], await get(ids[:size])

        return await self._with_fewer(len(ids), get_some)

    async def _refresh(self, deadline: Deadline) -> None:
        if self.transport.is_paused(RequestKind.SESSION):
            return
        request = HttpRequest(
            method="GET",
            url=self.session.url,
            kind=RequestKind.SESSION,
            headers=SESSION_HEADERS,
        )
        try:
            response = await self.transport.fetch(request, deadline=deadline, waits=False)
        except JmapfsError as error:
            if not self.transport.is_paused(RequestKind.SESSION):
                raise
            _log.info("the session is not fetched again: %s", error)
            self._refreshes.record()
            return
        session = await read_session(
            response,
            self.transport,
            location=self.session.location,
            rewrite_origin=self.session.rewrite_origin,
        )
        # Data of another account must not get into the index of this account. The session itself
        # says where the API is now, so the API may have moved.
        users = {name.casefold() for name in (session.username, self.session.username) if name}
        if len(users) > 1:
            raise ConfigError(
                f"the server's session now belongs to {printable(session.username, 80)}, not to"
                f" {printable(self.session.username, 80)}"
            )
        if self.account_id not in session.accounts:
            raise ConfigError(f"the server's session no longer has the account {self.account_id}")
        self.transport.set_limits(session.origins, session.limits.max_concurrent_requests)
        self.session = session
        self._stale = False
        self._refreshes.record()

    def _split(self, calls: Sequence[MethodCall]) -> Iterator[Sequence[MethodCall]]:
        largest = self.session.limits.max_calls_in_request
        # An argument with the sign # uses the result of another call (RFC 8620 §3.7).
        if len(calls) > largest and any(
            argument.startswith("#") for call in calls for argument in call.arguments
        ):
            raise ValueError("calls that refer to each other do not fit into one request")
        for start in range(0, len(calls), largest):
            yield calls[start : start + largest]

    def _note_state(self, state: object) -> None:
        # Servers behind one host name may report different states. Fetch once for each state.
        if isinstance(state, str) and state and state not in {self.session.state, self._seen_state}:
            self._seen_state = state
            self._stale = True
