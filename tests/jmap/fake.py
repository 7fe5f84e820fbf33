"""A small JMAP server as an httpx transport, which records its requests.

A test can replace each of its responses.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import httpx
import trio

from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.credentials import BasicCredentials
from jmapfs.jmap.discovery import ServiceTarget
from jmapfs.jmap.method_calls import MethodCall

Arguments: TypeAlias = dict[str, Any]
Method: TypeAlias = Callable[[Arguments], Arguments]
Handler: TypeAlias = Callable[[httpx.Request], httpx.Response | None]

HOST = "https://mail.example.org"
SESSION_URL = f"{HOST}/jmap/session"
CREDENTIALS = BasicCredentials("alice", "correct-horse")
CORE = "urn:ietf:params:jmap:core"
MAIL = "urn:ietf:params:jmap:mail"
LIMIT = "urn:ietf:params:jmap:error:limit"


NO_EMAILS = [MethodCall("Email/get", {"accountId": "A1", "ids": []})]
"""A request without a result that takes part in the budget."""


class RefusedError(Exception):
    """Raised by a method to answer with a method-level error."""

    def __init__(self, kind: str, description: str = "") -> None:
        self.answer = {"type": kind, "description": description}
        super().__init__(kind)


def session_document(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "username": "alice",
        "apiUrl": "/jmap/",
        "downloadUrl": "/jmap/download/{accountId}/{blobId}/{name}?accept={type}",
        "eventSourceUrl": "/jmap/events?types={types}&closeafter={closeafter}&ping={ping}",
        "state": "s1",
        "capabilities": {
            CORE: {
                "maxObjectsInGet": 500,
                "maxCallsInRequest": 16,
                "maxConcurrentRequests": 4,
                "maxSizeRequest": 1_000_000,
            },
            MAIL: {},
        },
        "accounts": {
            "A1": {"name": "alice", "isPersonal": True, "accountCapabilities": None},
            "A2": {"name": "shared", "isPersonal": False, "isReadOnly": True},
        },
        "primaryAccounts": {CORE: "A2", MAIL: "A1"},
    }
    document.update(changes)
    return document


def with_limits(**limits: Any) -> dict[str, Any]:
    document = session_document()
    document["capabilities"][CORE].update(limits)
    return document


def email_document(number: int, **changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": f"M{number}",
        "blobId": f"B{number}",
        "threadId": f"T{number}",
        "mailboxIds": {"inbox": True, "gone": False},
        "keywords": {"$seen": True, "$flagged": False},
        "size": 100 + number,
        "receivedAt": f"2024-03-01T{number // 60 % 24:02}:{number % 60:02}:00Z",
        "subject": f"Mail {number}",
        "from": [{"name": "Bob", "email": "bob@example.org"}],
    }
    document.update(changes)
    return document


def blob_document(
    blob_id: str,
    content: bytes,
    properties: Iterable[str] = ("data:asBase64", "size"),
    *,
    offset: int = 0,
    length: int | None = None,
    **changes: Any,
) -> dict[str, Any]:
    stop = len(content) if length is None else offset + length
    part = content[offset:stop]
    known: dict[str, Any] = {
        "data:asBase64": base64.b64encode(part).decode(),
        "size": len(content),
        "digest:sha": base64.b64encode(hashlib.sha1(part).digest()).decode(),  # noqa: S324
        "digest:sha-256": base64.b64encode(hashlib.sha256(part).digest()).decode(),
    }
    return {"id": blob_id, **{name: known[name] for name in properties}, **changes}


class FakeServer(httpx.AsyncBaseTransport):
    """A server of one account with `count` emails. `before` may return another response."""

    def __init__(self, count: int = 0, session: dict[str, Any] | None = None) -> None:
        self.session = session or session_document()
        self.emails = {f"M{n}": email_document(n) for n in range(count)}
        self.mailboxes: list[dict[str, Any]] = [{"id": "inbox", "name": "Inbox", "role": "inbox"}]
        self.blobs = {f"B{n}": b"x" * (100 + n) for n in range(count)}
        self.requests: list[httpx.Request] = []
        self.before: Handler | None = None
        self.delay = 0.0
        self.in_flight = 0
        self.most_in_flight = 0
        self.methods: dict[str, Method] = {
            "Email/get": self.email_get,
            "Email/query": self.email_query,
            "Mailbox/get": self.mailbox_get,
            "Mailbox/query": self.mailbox_query,
            "Blob/get": self.blob_get,
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await trio.sleep(self.delay)
            response = self.before(request) if self.before is not None else None
            return response or self.answer(request)
        finally:
            self.in_flight -= 1

    @property
    def paths(self) -> list[str]:
        return [request.url.path for request in self.requests]

    @property
    def calls(self) -> list[tuple[str, Arguments]]:
        """The method calls of all API requests so far."""
        return [
            (name, arguments)
            for request in self.requests
            if request.method == "POST"
            for name, arguments, _ in json.loads(request.content)["methodCalls"]
        ]

    def answer(self, request: httpx.Request) -> httpx.Response:
        if "authorization" not in request.headers:
            return httpx.Response(401, headers={"WWW-Authenticate": "Basic"})
        path = request.url.path
        if path in {"/.well-known/jmap", "/jmap/session"}:
            return httpx.Response(200, json=self.session)
        if path in {"/jmap/", "/v2/"}:
            return httpx.Response(200, json=self.respond(json.loads(request.content)))
        if path.startswith("/jmap/download/"):
            content = self.blobs.get(path.split("/")[4])
            return httpx.Response(404) if content is None else httpx.Response(200, content=content)
        return httpx.Response(404)

    def respond(self, document: dict[str, Any]) -> dict[str, Any]:
        responses: list[tuple[str, Arguments, str]] = []
        for name, arguments, call_id in document["methodCalls"]:
            try:
                resolved = _resolve(arguments, responses)
                answer = self.methods[name](resolved)
                answer.setdefault("accountId", arguments["accountId"])
                responses.append((name, answer, call_id))
            except RefusedError as refusal:
                responses.append(("error", refusal.answer, call_id))
        return {"methodResponses": responses, "sessionState": self.session["state"]}

    def change(self, method: str, **answer: Any) -> None:
        """Answer the /changes `method` with this."""
        changes: Arguments = {"created": [], "updated": [], "destroyed": [], **answer}
        self.methods[method] = lambda _: dict(changes)

    def email_get(self, arguments: Arguments) -> Arguments:
        ids = arguments["ids"]
        return {
            "state": "e1",
            "list": [self.emails[i] for i in ids if i in self.emails],
            "notFound": [i for i in ids if i not in self.emails],
        }

    def email_query(self, arguments: Arguments) -> Arguments:
        ids = list(self.emails)
        start = arguments.get("position", 0)
        answer: Arguments = {"ids": ids[start : start + arguments["limit"]], "queryState": "q1"}
        if arguments.get("calculateTotal"):
            answer["total"] = len(ids)
        return answer

    def mailbox_get(self, arguments: Arguments) -> Arguments:
        ids = arguments["ids"]
        chosen = [m for m in self.mailboxes if ids is None or m["id"] in ids]
        return {"state": "m1", "list": chosen, "notFound": []}

    def blob_get(self, arguments: Arguments) -> Arguments:
        ids = arguments["ids"]
        chosen = {name: arguments[name] for name in ("offset", "length") if name in arguments}
        wanted = arguments["properties"]
        return {
            "list": [
                blob_document(i, self.blobs[i], wanted, **chosen) for i in ids if i in self.blobs
            ],
            "notFound": [i for i in ids if i not in self.blobs],
        }

    def mailbox_query(self, arguments: Arguments) -> Arguments:
        ids = [m["id"] for m in self.mailboxes]
        start = arguments["position"]
        return {"ids": ids[start : start + arguments["limit"]], "queryState": "q1"}


def _resolve(arguments: Arguments, responses: list[tuple[str, Arguments, str]]) -> Arguments:
    resolved = dict(arguments)
    for name, reference in arguments.items():
        if name.startswith("#"):
            found = [
                a for n, a, i in responses if (n, i) == (reference["name"], reference["resultOf"])
            ]
            if not found:
                raise RefusedError("invalidResultReference")
            resolved[name[1:]] = found[0][reference["path"].removeprefix("/")]
    return resolved


class Chunks(httpx.AsyncByteStream):
    """A body in pieces: a number is a pause in seconds, an exception is raised."""

    def __init__(self, *pieces: bytes | float | Exception) -> None:
        self.pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, bytes):
                await trio.lowlevel.checkpoint()
                yield piece
            else:
                await trio.sleep(piece)

    async def aclose(self) -> None:
        self.closed = True


def resolver(records: Mapping[str, list[ServiceTarget]]) -> Callable[[str], Any]:
    """Return a Resolver that knows only these names."""

    async def look_up(name: str) -> list[ServiceTarget]:
        await trio.lowlevel.checkpoint()
        return records.get(name, [])

    return look_up


@asynccontextmanager
async def opened(server: FakeServer, **options: Any) -> AsyncIterator[Client]:
    """Yield a client of `server`; the requests of discovery are not recorded."""
    async with connect(SESSION_URL, CREDENTIALS, network=server, **options) as client:
        server.requests.clear()
        server.most_in_flight = 0
        yield client
