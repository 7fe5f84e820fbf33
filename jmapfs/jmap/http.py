"""Every HTTP request of an account goes through one Transport.

All requests share the credentials, the origins that may receive the credentials, the budget of
requests in flight, and the counters. The budget is for API calls and downloads together, because
some servers count them together. But each kind of request has a cooldown of its own: a server that
is busy for one kind may answer the others. If it counts them together, it answers 429 to each kind,
and each kind learns that with its first request.

After a suspend or a change of network, kept connections are dead, but no error reports that. So
after a request that failed or stalled, and before the first request after a suspend, all idle
connections are closed. The next request opens a new connection.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import trio

from jmapfs.deadline import Deadline
from jmapfs.errors import (
    AuthenticationError,
    DeadlineError,
    ForbiddenError,
    JmapfsError,
    ProtocolError,
    UnreachableError,
)
from jmapfs.jmap.answers import SESSION_LIMIT
from jmapfs.jmap.connections import NEW_CONNECTION, ConnectionPool
from jmapfs.jmap.http_errors import (
    HTTP_FAILURES,
    TransientError,
    http_error,
    network_error,
)
from jmapfs.jmap.login import Login
from jmapfs.jmap.origins import host_of, origin_of, secure_origin
from jmapfs.jmap.response import (
    STALL_TIMEOUT,
    HttpRequest,
    HttpResponse,
    RequestKind,
    ResponseReader,
)
from jmapfs.jmap.retry import Cooldown, RetryPolicy
from jmapfs.jmap.types import decode
from jmapfs.suspension import SuspensionDetector

T = TypeVar("T")

CONCURRENCY = 8
"""The largest number of requests in flight, whatever the server allows."""

CONNECT_TIMEOUT = 10.0
"""Seconds for opening a connection, TLS included; also for a write to be accepted."""

LONGEST_WAIT = 60.0
"""Seconds that a patient request waits, at most, when the server asks to wait."""

_INITIAL_CONCURRENCY = 2
_LARGEST_ERROR = 64 * 2**10
_CLOSE_TIMEOUT = 2.0
_REFUSALS = frozenset({401, 403})
_AUTHORITY = re.compile(r"[^:/?#]*://[^/?#]*")
# httpx has no read timeout: `_send` and ResponseReader limit the wait for a response.
_TIMEOUTS = httpx.Timeout(CONNECT_TIMEOUT, read=None, pool=None).as_dict()


@dataclass(slots=True)
class Traffic:
    """Counts the HTTP requests (each attempt), the received blobs, and the bytes of the blobs.

    `objects` counts the ids, emails and mailboxes in responses.
    """

    requests: int = 0
    blobs: int = 0
    bytes: int = 0
    objects: int = 0


class Transport(AbstractAsyncContextManager["Transport"]):
    """Sends requests with credentials, within a budget, until a deadline. Safe for many tasks.

    It is an asynchronous context manager that closes all connections at its end. `network` replaces
    the network in tests. `ca_file` names more certificate authorities. `longest_wait` bounds, in
    seconds, how long a patient request waits if the server asks to wait, and `on_wait` gets a line
    for the user then. `traffic` counts what was sent and received. `accept_parameter` is added to
    the Accept field of every request.
    """

    def __init__(
        self,
        login: Login,
        *,
        user_agent: str,
        network: httpx.AsyncBaseTransport | None = None,
        ca_file: Path | None = None,
        longest_wait: float = LONGEST_WAIT,
        on_wait: Callable[[str, float], None] | None = None,
        concurrency: int = CONCURRENCY,
    ) -> None:
        self.traffic = Traffic()
        self.accept_parameter = ""
        self._login = login
        self._user_agent = user_agent
        self._network = ConnectionPool(ca_file) if network is None else network
        self.longest_wait = longest_wait
        self._closed = False
        self._suspensions = SuspensionDetector()
        self._concurrency = max(1, concurrency)
        self._budget = trio.CapacityLimiter(min(_INITIAL_CONCURRENCY, self._concurrency))
        self._waiting: set[Deadline] = set()
        # Nobody waits for the event stream: the account is polled without it.
        self._cooldowns = {
            kind: Cooldown(None if kind is RequestKind.PUSH else on_wait) for kind in RequestKind
        }
        self._trusted: frozenset[str] = frozenset()
        self._named_by: Mapping[str, str] = {}
        self._trusted_hosts: dict[str, str] = {}

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections, including those in use; later requests fail."""
        self._closed = True
        # Closing sends a TLS alert, which must neither be cut short nor wait without a limit.
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await self._network.aclose()

    async def close_idle(self) -> None:
        """Close the connections that no request uses: they may be dead."""
        if isinstance(self._network, ConnectionPool):
            with suppress(*HTTP_FAILURES), trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await self._network.close_idle()

    async def close_connections(self) -> None:
        """Close all connections: they are dead. Requests in flight are sent again."""
        if isinstance(self._network, ConnectionPool):
            with suppress(*HTTP_FAILURES), trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await self._network.close_connections()

    @property
    def concurrency(self) -> int:
        """How many requests may currently be in flight at the same time."""
        return int(self._budget.total_tokens)

    @property
    def is_waiting(self) -> bool:
        """Whether a request is in flight, or has to wait because the server is busy."""
        # Nobody waits for the event stream, and its pauses can be long.
        return self._budget.borrowed_tokens > 0 or any(
            cooldown.active
            for kind, cooldown in self._cooldowns.items()
            if kind is not RequestKind.PUSH
        )

    def is_paused(self, kind: RequestKind) -> bool:
        """Return whether requests of a kind have to wait, because the server is busy."""
        return self._cooldowns[kind].active

    def pause(self, kind: RequestKind) -> float:
        """Return for how many more seconds the server asks not to send requests of a kind."""
        return self._cooldowns[kind].seconds_requested

    @property
    def limits_methods(self) -> bool:
        """Whether the server works, but asks not to call methods for a while."""
        return self.pause(RequestKind.API) > 0 and self._cooldowns[RequestKind.API].limited

    def end_pause(self, kind: RequestKind) -> None:
        """Let the next request of a kind be sent at once, even if the server has asked to wait."""
        self._cooldowns[kind].end()

    def set_limits(self, origins: Mapping[str, str], concurrent_requests: int) -> None:
        """Apply the origins and the number of concurrent requests that a session allows.

        `origins` maps each origin to what names it, for error texts, such as "the session's
        apiUrl", or to an empty string if it is the origin of the session itself.
        """
        self.trust(origins)
        self.explain(origins)
        self._budget.total_tokens = max(1, min(concurrent_requests, self._concurrency))

    def explain(self, origins: Mapping[str, str]) -> None:
        """Add to errors about these origins what names them, until `trust` is called."""
        self._named_by = origins

    def trust(self, origins: Iterable[str]) -> None:
        """Allow the credentials to go to these origins, and to no others."""
        self._trusted = frozenset(origins)
        self._trusted_hosts.clear()
        self._named_by = {}

    def decode(self, response: HttpResponse, type_: type[T], what: str) -> T:
        """Decode the body of a response; raises ProtocolError."""
        content_type = response.headers.get("content-type", "no content type")
        return decode(response.content, type_, what, content_type=content_type)

    async def fetch(
        self,
        request: HttpRequest,
        *,
        deadline: Deadline,
        largest: int = SESSION_LIMIT.bytes,
        patient: bool = False,
        waits: bool = True,
    ) -> HttpResponse:
        """Send a request, retry it if a retry may help, and return the whole response.

        `largest` bounds the response in bytes. With `patient`, pauses that the server asks for do
        not count, up to `longest_wait` seconds. Without `waits`, the request fails as soon as the
        server is busy.

        Raises:
            UnreachableError, DeadlineError: there was no usable response in time.
            AuthenticationError: the server does not accept the credentials.
            RequestError: the server answered with an error.
            AnswerTooLargeError: the response is too large.
            ProtocolError: the response is a redirect, or the URL is not allowed.
        """
        retries = RetryPolicy(deadline)
        cooldown = self._cooldowns[request.kind]
        waited = 0.0
        late: DeadlineError | None = None
        while True:
            if patient:
                paused = await cooldown.sit_out(self.longest_wait - waited)
                waited += paused
                deadline.extend(paused)
            try:
                async with self.exchange(request, deadline=deadline) as reader:
                    content = await reader.read(largest)
                    return HttpResponse(reader.status, reader.headers, request.url, content)
            except TransientError as failure:
                if isinstance(failure.error, DeadlineError):
                    late = failure.error
                if failure.throttled and not waits:
                    raise failure.error from None
                await retries.wait_after(failure)
            except DeadlineError as error:
                # The last attempt may have had only a second.
                raise late or error from None
            except JmapfsError as error:
                # Another request may have begun a pause while this one waited for its turn.
                paused_now = cooldown.active and cooldown.requested and error is cooldown.reason
                if not patient or not paused_now:
                    raise

    @asynccontextmanager
    async def exchange(
        self, request: HttpRequest, *, deadline: Deadline
    ) -> AsyncIterator[ResponseReader]:
        """Send a request once. Yields the reader of a response with an expected status.

        The request counts in the budget until the block ends. Raises TransientError in addition to
        what `fetch` raises.
        """
        host = self._check(request)
        # A task cannot be the borrower: it may read several streams at a time, but a borrower can
        # borrow only once.
        borrower = object()
        cooldown = self._cooldowns[request.kind]
        self._waiting.add(deadline)
        try:
            with deadline.enforced(
                f"a request to {host} could not start in time: others were waiting"
            ):
                while True:
                    await cooldown.wait(deadline.until)
                    await self._budget.acquire_on_behalf_of(borrower)
                    if not cooldown.active:
                        break
                    self._budget.release_on_behalf_of(borrower)
        finally:
            self._waiting.discard(deadline)
        try:
            async with self._attempt(request, deadline, host) as reader:
                yield reader
        finally:
            self._budget.release_on_behalf_of(borrower)

    @asynccontextmanager
    async def subscribe(
        self, request: HttpRequest, *, deadline: Deadline, silence: float
    ) -> AsyncIterator[ResponseReader]:
        """Open an endless response, such as an event stream.

        The response may pause for `silence` seconds at a time. The request waits until the cooldown
        ends, but does not count in the budget of requests. The head of the response must arrive
        before the deadline. Raises the same errors as `exchange`.
        """
        host = self._check(request)
        try:
            await self._cooldowns[request.kind].wait(deadline.until)
        except JmapfsError as reason:
            raise TransientError(reason) from None
        async with self._attempt(request, deadline, host) as reader:
            reader.deadline = None
            reader.stall_timeout = silence
            yield reader

    async def error(self, reader: ResponseReader) -> JmapfsError | TransientError:
        """Return the error to raise for a response with an unexpected status."""
        # A deadline of its own: the bytes of an error page are no progress.
        left = STALL_TIMEOUT if reader.deadline is None else reader.deadline.left
        reader.deadline = Deadline(min(left, STALL_TIMEOUT))
        body = await reader.read_start(_LARGEST_ERROR)
        return http_error(reader.status, reader.headers, body, host=reader.host)

    def _refill_waiting(self, count: int) -> None:
        for deadline in self._waiting:
            deadline.refill(count)

    def _check(self, request: HttpRequest) -> str:
        """Check that the request may be sent. Return the host of its URL, for error texts."""
        # The result depends only on scheme, host and port. These are the key of the cache.
        match = _AUTHORITY.match(request.url)
        start = match[0] if match else request.url
        if host := self._trusted_hosts.get(start):
            return host
        origin = secure_origin(request.url, naming="a URL of the server", error=ProtocolError)
        host = host_of(request.url)
        if origin in self._trusted:
            self._trusted_hosts[start] = host
        elif request.authenticated:
            raise ProtocolError(f"credentials are not sent to {host}: the session does not name it")
        return host

    @asynccontextmanager
    async def _attempt(
        self, request: HttpRequest, deadline: Deadline, host: str
    ) -> AsyncIterator[ResponseReader]:
        started = trio.current_time()
        cooldown = self._cooldowns[request.kind]
        reader = await self._open(request, deadline, host)
        try:
            if reader.status not in request.expected:
                error = await self.error(reader)
                if isinstance(error, TransientError) and error.throttled:
                    cooldown.extend(error, started=started, host=host)
                raise error
            cooldown.reset()
            yield reader
        finally:
            await self._close(reader)

    async def _open(self, request: HttpRequest, deadline: Deadline, host: str) -> ResponseReader:
        """Send a request. If the secret was refused but has changed, send the request once more."""
        renewed = False
        while True:
            if self._closed:
                raise UnreachableError("the connection to the server was closed")
            headers, credentials = request.headers, None
            if request.authenticated:
                credentials = await self._login.credentials()
                headers = {**headers, "Authorization": credentials.authorization}
            response = await self._send(request, headers, deadline, host)
            reader = ResponseReader(
                response, host=host, deadline=deadline, on_received=self._refill_waiting
            )
            if credentials is None or reader.status not in _REFUSALS - request.expected:
                return reader
            try:
                error = await self.error(reader)
            finally:
                await self._close(reader)
            # A ForbiddenError does not say that the secret is wrong.
            if not isinstance(error, AuthenticationError) or isinstance(error, ForbiddenError):
                raise error
            # If only push refuses the secret, all other requests go on.
            pauses = request.kind is not RequestKind.PUSH
            new = await self._login.renew(credentials, error, deadline.until, pauses=pauses)
            if not new or renewed:
                raise self._login.refusal or error
            renewed = True

    async def _close(self, reader: ResponseReader) -> None:
        await reader.aclose()
        if reader.failed:
            await self.close_idle()

    async def _send(
        self, request: HttpRequest, headers: Mapping[str, str], deadline: Deadline, host: str
    ) -> httpx.Response:
        timeout = min(request.first_byte_timeout, deadline.left)
        all_headers = {
            "User-Agent": self._user_agent,
            # http:// means this machine, where compression takes more time than it saves.
            "Accept-Encoding": "identity" if request.url[:5].lower() == "http:" else "gzip",
            **headers,
        }
        if self.accept_parameter:
            all_headers["Accept"] = f"{all_headers.get('Accept', '*/*')}{self.accept_parameter}"
        self.traffic.requests += 1
        if self._suspensions.noticed():
            await self.close_idle()
        with trio.move_on_after(timeout):
            try:
                return await self._network.handle_async_request(
                    httpx.Request(
                        request.method,
                        request.url,
                        headers=all_headers,
                        content=request.content,
                        extensions={"timeout": _TIMEOUTS, NEW_CONNECTION: request.new_connection},
                    )
                )
            except HTTP_FAILURES as error:
                await self.close_idle()
                raise network_error(error, host, self._reached_by(request.url)) from error
        await self.close_idle()
        late = DeadlineError(f"{host} did not answer within {timeout:.0f} s")
        raise late if deadline.passed else TransientError(late)

    def _reached_by(self, url: str) -> str:
        """Return a remark for an error about a host that only the session names, or nothing."""
        name = self._named_by.get(origin_of(url), "")
        if not name:
            return ""
        return (
            f" ({name} names {host_of(url)}; if the server is reachable only under"
            " the name that you gave, set rewrite_origin = true)"
        )
