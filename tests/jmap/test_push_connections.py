"""Push over real connections: events arrive in time, and no connection stays open."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from jmapfs.errors import AuthenticationError, UnreachableError
from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.credentials import BasicCredentials
from jmapfs.jmap.push import Connected, PushStream, PushUnavailableError, StateChange
from tests.server import Account, MailServer, Quirks, Status, running_server
from tests.waits import wait_until_async

CREDENTIALS = BasicCredentials("alice@example.org", "secret")
MAILBOX = StateChange(frozenset({"Mailbox"}))


@asynccontextmanager
async def serving(**quirks: Any) -> AsyncIterator[tuple[MailServer, Client]]:
    """Yield a server with two accounts, and a client; at the end no stream may be open."""
    accounts = [Account(), Account("A2", "shared")]
    for account in accounts:
        account.create_mailbox("Inbox", role="inbox", mailbox_id="Pinbox")
    server = MailServer(accounts, quirks=Quirks(**quirks))
    async with running_server(server) as url:
        async with connect(f"{url}/session", CREDENTIALS) as client:
            yield server, client
            await wait_for_streams(server, 0)
        gc.collect()


async def wait_for_streams(server: MailServer, count: int) -> None:
    """Wait until the server has `count` open streams."""
    await wait_until_async(lambda: server.in_flight["push"] == count)


@asynccontextmanager
async def listening(client: Client, **options: Any) -> AsyncIterator[PushStream]:
    async with client.push(**options) as stream:
        assert await anext(stream) == Connected()
        yield stream


async def soon(stream: PushStream) -> object:
    with trio.fail_after(10):
        return await anext(stream)


async def test_change_is_reported() -> None:
    async with serving() as (server, client), listening(client) as stream:
        server.primary.rename_mailbox("Pinbox", "In")
        assert await soon(stream) == MAILBOX
        server.primary.add_email(b"Subject: x\r\n\r\n", ["Pinbox"])
        assert await soon(stream) == StateChange(frozenset({"Email", "Mailbox"}))
        assert await client.mailboxes()
        assert server.counts.headers["push accept"] == {"text/event-stream": 1}


async def test_change_without_type_is_reported() -> None:
    async with serving(push_without_type=True) as (server, client), listening(client) as stream:
        server.primary.rename_mailbox("Pinbox", "In")
        assert await soon(stream) == MAILBOX


async def test_changes_of_another_account_are_ignored() -> None:
    async with serving() as (server, client), listening(client) as stream:
        _, other = server.accounts.values()
        other.add_email(b"Subject: x\r\n\r\n", ["Pinbox"])
        server.primary.rename_mailbox("Pinbox", "In")
        assert await soon(stream) == MAILBOX


async def test_two_streams_can_be_open() -> None:
    async with serving() as (server, client):
        async with listening(client) as one, listening(client) as two:
            server.primary.rename_mailbox("Pinbox", "In")
            assert (await soon(one), await soon(two)) == (MAILBOX, MAILBOX)
            await wait_for_streams(server, 2)
        assert server.counts.push_streams == 2


async def test_pings_keep_the_stream_open() -> None:
    async with serving(push="pings-only") as (server, client), listening(client, ping=1) as stream:
        server.primary.rename_mailbox("Pinbox", "In")
        with trio.move_on_after(2.5) as patience:
            await anext(stream)
        assert patience.cancelled_caught


async def test_silent_stream_ends() -> None:
    async with serving(push="dies") as (server, client), listening(client, ping=1) as stream:
        server.primary.rename_mailbox("Pinbox", "In")
        started = trio.current_time()
        with trio.fail_after(10), pytest.raises(UnreachableError, match="silent for 2 s"):
            await anext(stream)
        assert trio.current_time() - started > 1.9


@pytest.mark.parametrize(("push", "status"), [("off", 204), ("not-found", 404), ("forbidden", 403)])
async def test_server_without_push(push: Any, status: int) -> None:
    async with serving(push=push) as (_, client):
        with pytest.raises(PushUnavailableError, match=str(status)):
            async with client.push():
                pass


async def test_rejected_credentials_are_reported() -> None:
    async with serving() as (server, client):
        server.credentials.password = "another"
        with pytest.raises(AuthenticationError):
            async with client.push():
                pass


async def test_busy_server_is_not_asked_again_too_soon() -> None:
    async with serving() as (server, client):
        server.quirks.statuses.append(Status("push", 429, retry_after="50"))
        for _ in range(2):
            with pytest.raises(UnreachableError, match="busy"):
                async with client.push(ping=1):
                    pass
        assert server.counts.endpoints["push"] == 1


async def test_stream_ends_with_the_server() -> None:
    server = MailServer()
    async with trio.open_nursery() as nursery:
        async with running_server(server) as url:
            client = await nursery.start(_connected, url)
            stream = await nursery.start(_listening, client)
        with trio.fail_after(10), pytest.raises(UnreachableError):
            await anext(stream)
        with pytest.raises(UnreachableError, match="refuses"):
            async with client.push():
                pass
        nursery.cancel_scope.cancel()


async def _connected(url: str, task_status: trio.TaskStatus[Client]) -> None:
    async with connect(f"{url}/session", CREDENTIALS) as client:
        task_status.started(client)
        await trio.sleep_forever()


async def _listening(client: Client, task_status: trio.TaskStatus[PushStream]) -> None:
    async with listening(client) as stream:
        task_status.started(stream)
        await trio.sleep_forever()


async def test_stream_is_closed_between_events() -> None:
    async with serving() as (server, client):
        async with listening(client) as stream:
            server.primary.rename_mailbox("Pinbox", "In")
            assert await soon(stream) == MAILBOX
        await wait_for_streams(server, 0)
        with pytest.raises(ZeroDivisionError):
            async with listening(client):
                raise ZeroDivisionError
        await wait_for_streams(server, 0)


async def test_stream_is_closed_while_waiting() -> None:
    async with serving() as (server, client):
        for _ in range(3):
            with trio.move_on_after(0.05):
                async with listening(client) as stream:
                    await anext(stream)
            await wait_for_streams(server, 0)
        server.quirks.hang.append("push")
        with trio.move_on_after(0.05):
            async with client.push():
                pass
        await wait_for_streams(server, 0)


async def test_this_machine_is_not_reached_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with serving() as (_, client), listening(client):
        pass
