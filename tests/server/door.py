"""The way in for each request: counted, delayed, refused, or let through to its handler.

A request body is always read to its end before anything is answered: Hypercorn stops reading the
whole connection when an application leaves a body lying.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .auth import problem, unauthorized
from .errors import RequestProblemError
from .quirks import Place, Status

if TYPE_CHECKING:
    from .app import MailServer

log = logging.getLogger(__name__)


class Answer(Protocol):
    """What answers a request: a Response of Starlette, or what acts like one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


Handler = Callable[["MailServer", Request], Awaitable[Answer]]
_SEEN_HEADERS = ("accept", "accept-encoding", "content-type", "range", "user-agent")


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has gone away; the request must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Door:
    """The ASGI application of one place; its handler sees only requests that may pass."""

    def __init__(self, server: MailServer, place: Place, handler: Handler) -> None:
        self._server = server
        self._place = place
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server, counts = self._server, self._server.counts
        request = Request(scope, receive)
        self._count(request)

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                counts.statuses[str(message["status"])] += 1
            else:
                counts.bytes_sent += len(message.get("body", b""))
            await send(message)

        # Decided before the first await: requests that come together are counted in turn.
        too_many = self._is_one_too_many()
        server.in_flight[self._place] += 1
        server.refused[self._place] += too_many
        self._note_concurrency()
        try:
            await request.body()
            answer = await self._answer(request, receive, too_many=too_many)
            if answer is not None:
                await answer(scope, receive, counted_send)
        except ClientDisconnect:
            pass
        finally:
            server.in_flight[self._place] -= 1
            server.refused[self._place] -= too_many

    def _count(self, request: Request) -> None:
        counts = self._server.counts
        counts.http_requests += 1
        counts.places[self._place] += 1
        authorization = request.headers.get("authorization")
        if authorization is not None:
            counts.authorized_hosts[request.headers.get("host", "")] += 1
            counts.see_header("authorization", authorization.partition(" ")[0])
        counts.see_header("http-version", request.scope["http_version"])
        for name in _SEEN_HEADERS:
            if name in request.headers:
                counts.see_header(f"{self._place} {name}", request.headers[name])

    async def _answer(self, request: Request, receive: Receive, *, too_many: bool) -> Answer | None:
        """Return what answers the request; None when nothing can any more."""
        server, quirks, place = self._server, self._server.quirks, self._place
        delay = quirks.request_delay + (quirks.download_delay if place == "download" else 0)
        if place in quirks.hang:
            delay = math.inf
        if delay:
            with trio.move_on_after(delay):
                await until_disconnect(receive)
                return None
        if status := quirks.status_for(place):
            return _refusal(status)
        if not server.credentials.accept(request.headers.get("authorization")):
            return unauthorized()
        try:
            if too_many:
                return _too_many(quirks.concurrency_status)
            return await self._handler(server, request)
        except RequestProblemError as error:
            return problem(error.status, error.document)
        except Exception as bug:
            # It must not pass for the fault a test asked for: `running_server` raises it again.
            log.exception("A bug in the test server")
            server.bugs.append(bug)
            return Response("A bug in the test server", 500)

    def _is_one_too_many(self) -> bool:
        server = self._server
        api, downloads = (
            server.in_flight[place] - server.refused[place] for place in ("api", "download")
        )
        limit = server.quirks.max_concurrent_requests
        if server.quirks.count_downloads:
            return self._place in {"api", "download"} and api + downloads >= limit
        return self._place == "api" and api >= limit

    def _note_concurrency(self) -> None:
        server, counts = self._server, self._server.counts
        api, downloads = server.in_flight["api"], server.in_flight["download"]
        counts.max_concurrent = max(counts.max_concurrent, api + downloads)
        counts.max_concurrent_api = max(counts.max_concurrent_api, api)


def _refusal(status: Status) -> Response:
    headers = {}
    if status.retry_after is not None:
        headers["retry_after"] = status.retry_after
    if status.location is not None:
        headers["location"] = status.location
    document = {"type": "about:blank", "status": status.status, "detail": status.detail}
    return problem(status.status, document, **headers)


def _too_many(status: int) -> Response:
    detail = "Too many requests at a time"
    error = RequestProblemError(status, "limit", detail, "maxConcurrentRequests")
    return problem(error.status, error.document)
