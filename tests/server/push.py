"""The event source (RFC 8620 §7.3): StateChange events and pings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .endpoint import Answer, wait_for_disconnect
from .errors import RequestProblemError

if TYPE_CHECKING:
    from .app import MailServer

Changed = dict[str, dict[str, str]]  # states by type, by account


async def serve_events(server: MailServer, request: Request) -> Answer:
    """Answer GET /jmap/eventsource?types={types}&closeafter={closeafter}&ping={ping}."""
    match server.quirks.push:
        case "off":
            return Response(status_code=204)
        case "not-found":
            raise RequestProblemError(404, "about:blank", "Push is not offered")
        case "forbidden":
            raise RequestProblemError(403, "about:blank", "Push is forbidden")
        case _:
            pass
    query = request.query_params
    ping = query.get("ping", "0")
    close_after = query.get("closeafter", "no")
    if not ping.isdecimal() or close_after not in {"no", "state"}:
        raise RequestProblemError(400, "about:blank", "ping or closeafter is invalid")
    types = query.get("types", "*")
    return _EventStream(
        server,
        types=None if types == "*" else set(types.split(",")),
        close_after_state=close_after == "state",
        ping=int(ping),
    )


class _EventStream:
    """One open stream."""

    def __init__(
        self, server: MailServer, *, types: set[str] | None, close_after_state: bool, ping: int
    ) -> None:
        self._server = server
        self._types = types
        self._close_after_state = close_after_state
        self._ping = server.quirks.push_ping or ping or math.inf
        self._events = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        gone = False
        self._server.counts.push_streams += 1
        with self._server.listen() as changes:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send(send, ": connected\n\n")
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    nonlocal gone
                    await wait_for_disconnect(receive)
                    gone = True
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                await self._stream(send, changes)
                nursery.cancel_scope.cancel()
        if not gone:
            # After the nursery: `watch` takes the end of the response for a disconnect, and
            # Hypercorn must not be cancelled while it prepares the connection for reuse.
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(self, send: Send, changes: trio.MemoryReceiveChannel[Changed]) -> None:
        quirks = self._server.quirks
        while True:
            with trio.move_on_after(self._ping) as waiting:
                changed = self._wanted(await changes.receive())
            if quirks.push == "dies":
                continue
            if waiting.cancelled_caught:
                interval = self._ping * 1000 if quirks.ping_in_ms else self._ping
                await self._event(send, "ping", {"interval": interval})
            elif changed and quirks.push != "pings-only":
                event: dict[str, Any] = {"@type": "StateChange", "changed": changed}
                if quirks.push_without_type:
                    del event["@type"]
                await self._event(send, "state", event)
                if self._close_after_state:
                    return

    def _wanted(self, changed: Changed) -> Changed:
        wanted = {
            account_id: {
                kind: state
                for kind, state in states.items()
                if self._types is None or kind in self._types
            }
            for account_id, states in changed.items()
        }
        return {account_id: states for account_id, states in wanted.items() if states}

    async def _event(self, send: Send, name: str, data: dict[str, Any]) -> None:
        self._events += 1
        identity = f"id: {self._events}\n" if name == "state" else ""
        text = msgspec.json.encode(data).decode()
        await self._send(send, f"{identity}event: {name}\ndata: {text}\n\n")

    async def _send(self, send: Send, text: str) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
