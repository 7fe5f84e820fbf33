"""The event source: events, pings, and the ways push is not there."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from .speaking import AUTH, Speaker, inbox_of, mail, speaking


class Listener:
    """An open event stream, read off a bare socket: httpx leaves generators behind."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def soon(self) -> tuple[str, Any]:
        """Return the next event and its data."""
        with trio.fail_after(10):
            while b"data: " not in self._buffer:
                await self._read()
        event, _, self._buffer = self._buffer.partition(b"\n\n\r\n")
        name = event.partition(b"event: ")[2].partition(b"\n")[0]
        return name.decode(), json.loads(event.partition(b"data: ")[2])

    async def until_end(self) -> None:
        """Read to the last chunk."""
        with trio.fail_after(10):
            while not self._buffer.endswith(b"0\r\n\r\n"):
                await self._read()

    async def nothing(self, seconds: float) -> None:
        """Check that nothing comes for a while."""
        with trio.move_on_after(seconds):
            raise AssertionError(await self._stream.receive_some())

    async def _read(self) -> None:
        more = await self._stream.receive_some()
        assert more, "the server closed the connection"
        self._buffer += more


@asynccontextmanager
async def listening(
    s: Speaker, types: str = "*", ping: int = 0, close: str = "no"
) -> AsyncIterator[Listener]:
    url = s.http.base_url
    basic = base64.b64encode(":".join(AUTH).encode()).decode()
    request = (
        f"GET /jmap/eventsource?types={types}&closeafter={close}&ping={ping} HTTP/1.1\r\n"
        f"Host: {url.host}:{url.port}\r\nAuthorization: Basic {basic}\r\n\r\n"
    )
    async with await trio.open_tcp_stream(url.host, url.port or 80) as stream:
        await stream.send_all(request.encode())
        head = b""
        while b": here we are\n\n\r\n" not in head:
            head += await stream.receive_some()
        assert b" 200 " in head
        assert b"text/event-stream" in head
        yield Listener(stream)


async def test_state_changes() -> None:
    async with speaking(inbox_of(0)) as s, listening(s, types="Email,Mailbox") as events:
        s.account.add_email(mail(0), ["Pinbox"])
        states = s.account.states
        name, data = await events.soon()
        assert (name, data["@type"]) == ("state", "StateChange")
        del states["Thread"]
        assert data["changed"] == {s.account.id: states}
        s.quirks.push_without_type = True
        s.account.rename_mailbox("Pinbox", "In")
        _, data = await events.soon()
        assert data == {"changed": {s.account.id: {"Mailbox": s.account.states["Mailbox"]}}}
        assert s.server.counts.push_streams == 1


async def test_only_the_types_asked_for_and_close_after_state() -> None:
    async with speaking(inbox_of(1)) as s:
        async with listening(s, types="Mailbox", close="state") as events:
            s.account.move_mailbox("Pinbox", "Pinbox")
            await events.soon()
            await events.until_end()
        assert (await s.http.get("/session")).status_code == 200


async def test_pings() -> None:
    async with speaking(inbox_of(1), push="pings-only") as s:
        async with listening(s, ping=1) as events:
            s.account.rename_mailbox("Pinbox", "In")
            assert await events.soon() == ("ping", {"interval": 1})
        s.quirks.push_ping = 0.01
        s.quirks.ping_in_ms = True
        async with listening(s, ping=300) as events:
            assert await events.soon() == ("ping", {"interval": 10})


async def test_push_that_dies_silently() -> None:
    async with speaking(inbox_of(1), push="dies", push_ping=0.05) as s, listening(s) as events:
        s.account.rename_mailbox("Pinbox", "In")
        await events.nothing(0.3)


@pytest.mark.parametrize(("push", "status"), [("off", 204), ("not-found", 404), ("forbidden", 403)])
async def test_no_push(push: Any, status: int) -> None:
    async with speaking(push=push) as s:
        assert (await s.http.get("/jmap/eventsource")).status_code == status


async def test_a_client_that_leaves_is_forgotten() -> None:
    async with speaking() as s:
        async with listening(s):
            assert s.server.in_flight["push"] == 1
        await s.quiet()
