"""The event source: events, pings and faults."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.mails import text_mail

from .jmap_client import AUTH, JmapClient, account_with_inbox, connected


class EventReader:
    """An open event stream on a plain socket: httpx leaves generators behind."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def next_event(self) -> tuple[str, Any]:
        """Return the name and the data of the next event."""
        with trio.fail_after(10):
            while b"data: " not in self._buffer:
                await self._read()
        event, _, self._buffer = self._buffer.partition(b"\n\n\r\n")
        name = event.partition(b"event: ")[2].partition(b"\n")[0]
        return name.decode(), json.loads(event.partition(b"data: ")[2])

    async def read_to_end(self) -> None:
        """Read up to the last chunk."""
        with trio.fail_after(10):
            while not self._buffer.endswith(b"0\r\n\r\n"):
                await self._read()

    async def require_silence(self, seconds: float) -> None:
        """Fail if anything arrives within this time."""
        with trio.move_on_after(seconds):
            raise AssertionError(await self._stream.receive_some())

    async def _read(self) -> None:
        more = await self._stream.receive_some()
        assert more, "the server closed the connection"
        self._buffer += more


@asynccontextmanager
async def listening(
    client: JmapClient, types: str = "*", ping: int = 0, close: str = "no"
) -> AsyncIterator[EventReader]:
    url = client.http.base_url
    basic = base64.b64encode(":".join(AUTH).encode()).decode()
    request = (
        f"GET /jmap/eventsource?types={types}&closeafter={close}&ping={ping} HTTP/1.1\r\n"
        f"Host: {url.host}:{url.port}\r\nAuthorization: Basic {basic}\r\n\r\n"
    )
    async with await trio.open_tcp_stream(url.host, url.port or 80) as stream:
        await stream.send_all(request.encode())
        head = b""
        while b": connected\n\n\r\n" not in head:
            head += await stream.receive_some()
        assert b" 200 " in head
        assert b"text/event-stream" in head
        yield EventReader(stream)


async def test_changes_are_announced() -> None:
    async with (
        connected(account_with_inbox(0)) as client,
        listening(client, types="Email,Mailbox") as events,
    ):
        client.account.add_email(text_mail(0), ["Pinbox"])
        states = client.account.states
        name, data = await events.next_event()
        assert (name, data["@type"]) == ("state", "StateChange")
        del states["Thread"]
        assert data["changed"] == {client.account.id: states}
        client.quirks.push_without_type = True
        client.account.rename_mailbox("Pinbox", "In")
        _, data = await events.next_event()
        assert data == {
            "changed": {client.account.id: {"Mailbox": client.account.states["Mailbox"]}}
        }
        assert client.server.counts.push_streams == 1


async def test_requested_types_and_close_after_state() -> None:
    async with connected(account_with_inbox(1)) as client:
        async with listening(client, types="Mailbox", close="state") as events:
            client.account.move_mailbox("Pinbox", "Pinbox")
            await events.next_event()
            await events.read_to_end()
        assert (await client.http.get("/session")).status_code == 200


async def test_pings_have_the_requested_interval() -> None:
    async with connected(account_with_inbox(1), push="pings-only") as client:
        async with listening(client, ping=1) as events:
            client.account.rename_mailbox("Pinbox", "In")
            assert await events.next_event() == ("ping", {"interval": 1})
        client.quirks.push_ping = 0.01
        client.quirks.ping_in_ms = True
        async with listening(client, ping=300) as events:
            assert await events.next_event() == ("ping", {"interval": 10})


async def test_push_can_fall_silent() -> None:
    async with (
        connected(account_with_inbox(1), push="dies", push_ping=0.05) as client,
        listening(client) as events,
    ):
        client.account.rename_mailbox("Pinbox", "In")
        await events.require_silence(0.3)


@pytest.mark.parametrize(("push", "status"), [("off", 204), ("not-found", 404), ("forbidden", 403)])
async def test_push_can_be_unavailable(push: Any, status: int) -> None:
    async with connected(push=push) as client:
        assert (await client.http.get("/jmap/eventsource")).status_code == status


async def test_the_stream_ends_with_its_client() -> None:
    async with connected() as client:
        async with listening(client):
            assert client.server.in_flight["push"] == 1
        await client.server.wait_until_idle()
