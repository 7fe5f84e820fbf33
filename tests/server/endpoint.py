"""Counts, delays and refuses requests, or passes them to the handler of their endpoint.

A request body is always read to its end before the response: Hypercorn stops reading the whole
connection when an application does not read a body.
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
from .quirks import EndpointName, Status

if TYPE_CHECKING:
    from .app import MailServer

log = logging.getLogger(__name__)


class Answer(Protocol):
    """The answer to a request: a Starlette Response, or a class with its interface."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


Handler = Callable[["MailServer", Request], Awaitable[Answer]]
_COUNTED_HEADERS = ("accept", "accept-encoding", "content-type", "range", "user-agent")


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected; the request must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Endpoint:
    """The ASGI application of one endpoint; its handler gets only authorized requests."""

    def __init__(self, server: MailServer, name: EndpointName, handler: Handler) -> None:
        self._server = server
        self._name = name
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

        # Decided before the first await, so that concurrent requests are counted one by one.
        too_many = self._exceeds_limit()
        server.in_flight[self._name] += 1
        server.refused[self._name] += too_many
        self._record_concurrency()
        try:
            await request.body()
            answer = await self._answer(request, receive, too_many=too_many)
            if answer is not None:
                await answer(scope, receive, counted_send)
        except ClientDisconnect:
            pass
        finally:
            server.in_flight[self._name] -= 1
            server.refused[self._name] -= too_many

    def _count(self, request: Request) -> None:
        counts = self._server.counts
        counts.http_requests += 1
        counts.endpoints[self._name] += 1
        authorization = request.headers.get("authorization")
        if authorization is not None:
            counts.authorized_hosts[request.headers.get("host", "")] += 1
            counts.count_header("authorization", authorization.partition(" ")[0])
        counts.count_header("http-version", request.scope["http_version"])
        for name in _COUNTED_HEADERS:
            if name in request.headers:
                counts.count_header(f"{self._name} {name}", request.headers[name])

    async def _answer(self, request: Request, receive: Receive, *, too_many: bool) -> Answer | None:
        """Return the answer to the request; None if the client has disconnected."""
        server, quirks, name = self._server, self._server.quirks, self._name
        server.apply_blob_ids()
        delay = quirks.request_delay + (quirks.download_delay if name == "download" else 0)
        if name in quirks.hang:
            delay = math.inf
        if delay:
            with trio.move_on_after(delay):
                await wait_for_disconnect(receive)
                return None
        if status := quirks.status_for(name):
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
            # `running_server` raises it: it must not look like a fault that a test asked for.
            log.exception("A bug in the test server")
            server.bugs.append(bug)
            return Response("A bug in the test server", 500)

    def _exceeds_limit(self) -> bool:
        server = self._server
        api, downloads = (
            server.in_flight[name] - server.refused[name] for name in ("api", "download")
        )
        limit = server.quirks.max_concurrent_requests
        if server.quirks.count_downloads:
            return self._name in {"api", "download"} and api + downloads >= limit
        return self._name == "api" and api >= limit

    def _record_concurrency(self) -> None:
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
    detail = "Too many concurrent requests"
    error = RequestProblemError(status, "limit", detail, "maxConcurrentRequests")
    return problem(error.status, error.document)
