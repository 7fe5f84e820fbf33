"""Push: the request, the events that are understood, and every failure."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.errors import AuthenticationError, DeadlineError, UnreachableError
from jmapfs.jmap.push import LARGEST_EVENT, Connected, PushEvent, PushUnavailableError, StateChange
from tests.jmap.fake import Chunks, FakeServer, opened, session_document

# ruff: noqa: ARG001 - the fixture sets the clock


STREAM = {"Content-Type": "text/event-stream"}
BOTH = StateChange(frozenset({"Email", "Mailbox"}))
EMAIL = StateChange(frozenset({"Email"}))


def event(name: str, data: object) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"event: {name}\ndata: {text}\n\n".encode()


def change(account: str = "A1", **states: object) -> bytes:
    return event("state", {"@type": "StateChange", "changed": {account: states}})


CHANGE = change(Email="e2")


def serving(*pieces: bytes | float | Exception, **headers: str) -> FakeServer:
    """Return a server whose event stream has these pieces."""
    return answering(
        lambda: httpx.Response(200, headers={**STREAM, **headers}, stream=Chunks(*pieces))
    )


def answering(answer: Callable[[], httpx.Response], **session: Any) -> FakeServer:
    server = FakeServer(session=session_document(**session))
    server.before = lambda request: answer() if "/events" in request.url.path else None
    return server


async def heard(server: FakeServer, **options: Any) -> tuple[list[PushEvent], Exception]:
    """Read the stream to its end; return the events and the error that ended it."""
    events: list[PushEvent] = []
    async with opened(server) as client:
        try:
            async with client.push(**options) as stream:
                async for each in stream:
                    events.append(each)  # noqa: PERF401 - the iteration ends by raising
        except Exception as error:  # noqa: BLE001
            return events, error
    raise AssertionError("it ended without an error")


async def changes(server: FakeServer) -> list[PushEvent]:
    """Return the events until the server ends the stream."""
    events, error = await heard(server)
    assert isinstance(error, UnreachableError)
    assert "ended" in str(error)
    assert events[0] == Connected()
    return events[1:]


async def refused(server: FakeServer, error: type[Exception], **options: Any) -> str:
    """Return the text of the error that is raised instead of a stream."""
    events, raised = await heard(server, **options)
    assert type(raised) is error
    assert events == []
    assert "correct-horse" not in str(raised)
    return str(raised)


# --- The request


async def test_request_has_the_types_and_the_ping() -> None:
    server = serving(CHANGE)
    async with opened(server, user_agent="me/1") as client:
        before = client.traffic.requests
        async with client.push(ping=29.5) as stream:
            assert await anext(stream) == Connected()
            assert await anext(stream) == EMAIL
        assert client.traffic.requests == before + 1
    [request] = server.requests
    assert str(request.url) == (
        "https://mail.example.org/jmap/events?types=Email%2CMailbox&closeafter=no&ping=30"
    )
    assert request.method == "GET"
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["user-agent"] == "me/1"
    assert request.headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("/events/", "/events/?types=Email%2CMailbox&closeafter=no&ping=60"),
        ("/events?ping={ping}", "/events?ping=60&types=Email%2CMailbox&closeafter=no"),
    ],
)
async def test_missing_variables_are_appended_to_the_template(template: str, url: str) -> None:
    server = answering(lambda: httpx.Response(204), eventSourceUrl=template)
    await refused(server, PushUnavailableError)
    assert str(server.requests[0].url) == f"https://mail.example.org{url}"


async def test_only_changes_of_the_selected_account_are_reported() -> None:
    server = serving(change(Email="1"), change("A2", Mailbox="1"))
    async with opened(server, account="A2") as client, client.push() as stream:
        assert await anext(stream) == Connected()
        assert await anext(stream) == StateChange(frozenset({"Mailbox"}))


async def test_credentials_go_to_origins_of_the_session_only() -> None:
    server = serving(CHANGE)
    async with opened(server) as client:
        client.session = replace(client.session, origins={})
        with pytest.raises(PushUnavailableError, match="credentials are not sent"):
            async with client.push():
                pass
        client.session = replace(client.session, event_source_url="http://example.org/")
        with pytest.raises(PushUnavailableError, match="in the clear"):
            async with client.push():
                pass
    assert server.requests == []


async def test_streams_take_no_place_in_the_budget() -> None:
    @asynccontextmanager
    async def one_more(client: Any, left: int) -> AsyncIterator[None]:
        async with client.push() as stream:
            assert await anext(stream) == Connected()
            if left:
                async with one_more(client, left - 1):
                    yield
            else:
                yield

    server = serving(1e9)
    async with opened(server, concurrency=1) as client, one_more(client, 5):
        with trio.fail_after(1):
            assert await client.mailboxes()


# --- Events


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b": here\n\n", CHANGE, CHANGE], [EMAIL, EMAIL]),
        ([change(Email="1", Mailbox="2", Thread="3")], [BOTH]),
        ([change(Thread="1", EmailDelivery="2")], []),
        ([change("A2", Email="1"), change("", Email="1")], []),
        ([event("state", {"changed": {"A1": {"Email": "1"}}})], [EMAIL]),
        ([event("state", {"changed": {"A2": None, "A1": {"Email": None}}})], [EMAIL]),
        ([CHANGE[:20], CHANGE[20:30], CHANGE[30:]], [EMAIL]),
        ([CHANGE + b"event: state\nda"], [EMAIL]),
        ([event("ping", {"interval": 5}), event("news", "x"), CHANGE], [EMAIL]),
    ],
)  # fmt: skip
async def test_state_changes_are_reported(pieces: list[bytes], expected: list[PushEvent]) -> None:
    assert await changes(serving(*pieces)) == expected


@pytest.mark.parametrize(
    "odd",
    [
        event("state", ""),
        event("state", "{"),
        event("state", "null"),
        event("state", {"@type": "PushVerification", "changed": {"A1": {"Email": "1"}}}),
        event("state", {"@type": 7, "changed": {"A1": {"Email": "1"}}}),
        event("state", {"@type": "StateChange"}),
        event("state", {"changed": ["A1"]}),
        event("state", {"changed": {"A1": ["Email"]}}),
        event("state", "[" * 100_000),
        event("state", '{"changed": {"A1": {"\\ud800": "correct-horse"}}}'),
        b"event: state\ndata: \xff\n\n",
        b"event: state\n\n",
        event("ping", ""),
        event("ping", {"interval": "soon"}),
        event("ping", {"interval": -1}),
        event("ping", '{"interval": 1e999}'),
        b"\0\xff\n\n\r\r\n: \n\n",
    ],
)
async def test_malformed_events_are_ignored(odd: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "jmapfs"):
        assert await changes(serving(odd, CHANGE)) == [EMAIL]
    assert all(record.levelno == logging.DEBUG for record in caplog.records)
    assert "correct-horse" not in caplog.text


async def test_line_without_end_is_an_error() -> None:
    server = serving(CHANGE, *[b"data: " + b"x" * 100_000] * (LARGEST_EVENT // 100_000 + 1), 1e9)
    events, error = await heard(server)
    assert events == [Connected(), EMAIL]
    assert isinstance(error, PushUnavailableError)
    assert "1,048,576" in str(error)


async def test_unknown_coding_is_an_error() -> None:
    events, error = await heard(serving(CHANGE, **{"Content-Encoding": "br"}))
    assert events == [Connected()]
    assert isinstance(error, PushUnavailableError)


# --- Errors and ends


@pytest.mark.parametrize(
    "status", [201, 204, 206, 301, 302, 307, 400, 403, 404, 405, 410, 413, 501]
)
async def test_error_status_means_no_push(status: int) -> None:
    headers = {"Location": "https://[", "Content-Type": "text/event-stream"}
    server = answering(lambda: httpx.Response(status, headers=headers, content=CHANGE))
    assert str(status) in await refused(server, PushUnavailableError)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "kind", ["text/html; charset=utf-8", "application/json", "text/event-streams", "text", ""]
)
async def test_other_media_types_mean_no_push(kind: str) -> None:
    server = answering(
        lambda: httpx.Response(200, headers={"Content-Type": kind}, stream=Chunks(CHANGE, 1e9))
    )
    assert "no event stream" in await refused(server, PushUnavailableError)


@pytest.mark.parametrize("kind", ["Text/Event-Stream;charset=UTF-8", "text/event-stream ; x=y"])
async def test_media_type_is_parsed_leniently(kind: str) -> None:
    assert await changes(serving(CHANGE, **{"Content-Type": kind})) == [EMAIL]


@pytest.mark.parametrize("url", [None, ""])
async def test_session_without_event_source_means_no_push(url: str | None) -> None:
    server = FakeServer(session=session_document(eventSourceUrl=url))
    assert "no event source" in await refused(server, PushUnavailableError)
    assert server.requests == []


async def test_rejected_credentials_are_reported() -> None:
    words = {"detail": "the token correct-horse has expired"}
    server = answering(lambda: httpx.Response(401, json=words))
    assert "has expired" in await refused(server, AuthenticationError)


@pytest.mark.parametrize("status", [408, 500, 502, 504])
async def test_broken_server_is_unreachable(status: int) -> None:
    server = answering(lambda: httpx.Response(status))
    assert str(status) in await refused(server, UnreachableError)
    assert len(server.requests) == 1


async def test_error_page_without_end_is_cut(autojump_clock: MockClock) -> None:
    pieces: list[bytes | float] = [b"no ", 3.0] * 1000
    server = answering(lambda: httpx.Response(404, stream=Chunks(*pieces)))
    started = trio.current_time()
    assert "no no" in await refused(server, PushUnavailableError)
    assert trio.current_time() - started <= 11


@pytest.mark.parametrize("status", [429, 503])
async def test_busy_server_gets_the_pause_it_asks_for(
    status: int, autojump_clock: MockClock
) -> None:
    server = serving(CHANGE)
    good = server.before
    busy = [httpx.Response(status, headers={"Retry-After": "40"})]

    def before(request: httpx.Request) -> httpx.Response | None:
        return busy.pop() if busy and "/events" in request.url.path else good and good(request)

    server.before = before
    async with opened(server) as client:
        started = trio.current_time()
        with pytest.raises(UnreachableError, match="busy"):
            async with client.push():
                pass
        with pytest.raises(UnreachableError, match="busy"):
            # The pause ends after the timeout: no request is sent.
            async with client.push(ping=5):
                pass
        assert trio.current_time() == started
        async with client.push() as stream:
            assert await anext(stream) == Connected()
        assert trio.current_time() == started + 40
    assert len(server.requests) == 2


async def test_limit_of_requests_causes_a_pause(autojump_clock: MockClock) -> None:
    problem = {"type": "urn:ietf:params:jmap:error:limit", "limit": "maxConcurrentRequests"}
    server = answering(
        lambda: httpx.Response(400, headers={"Retry-After": "60"}, json=problem),
    )
    async with opened(server) as client:
        for _ in range(2):
            with pytest.raises(UnreachableError, match="maxConcurrentRequests"):
                async with client.push(ping=5):
                    pass
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (httpx.ReadError("reset"), "reset"),
        (httpx.RemoteProtocolError("incomplete chunked read"), "incomplete"),
    ],
)
async def test_stream_that_breaks_off_is_unreachable(broken: Exception, words: str) -> None:
    events, error = await heard(serving(CHANGE, broken))
    assert events == [Connected(), EMAIL]
    assert isinstance(error, UnreachableError)
    assert words in str(error)


async def test_ended_stream_stays_ended() -> None:
    async with opened(serving(CHANGE)) as client, client.push() as stream:
        assert [await anext(stream), await anext(stream)] == [Connected(), EMAIL]
        for _ in range(2):
            with pytest.raises(UnreachableError, match="ended"):
                await anext(stream)


async def test_cancelled_wait_ends_the_stream(autojump_clock: MockClock) -> None:
    async with opened(serving(5.0, CHANGE)) as client, client.push() as stream:
        assert await anext(stream) == Connected()
        with trio.move_on_after(1):
            await anext(stream)
        with pytest.raises(UnreachableError, match="ended"):
            await anext(stream)


async def test_server_that_never_answers_is_given_up(autojump_clock: MockClock) -> None:
    server = FakeServer()
    async with opened(server) as client:
        server.delay = 1e9
        for ping, patience in ((1, 10), (60, 120)):
            started = trio.current_time()
            with pytest.raises(DeadlineError, match=f"within {patience} s"):
                async with client.push(ping=ping):
                    pass
            assert trio.current_time() - started == pytest.approx(patience)


def pinged(interval: float) -> bytes:
    return event("ping", {"interval": interval})


@pytest.mark.parametrize(
    ("pieces", "lasts"),
    [
        ([1e9], 120),
        ([119.0, pinged(60), 119.0, CHANGE, 1e9], 2 * 119 + 120),
        # Bytes that complete no event are as good as none.
        ([119.0, b":", 119.0, b"x", 119.0, b"\n", 119.0, pinged(60), 1e9], 2 * 119),
        ([b": comment\n\n", 60.0] * 10, 180),
        ([pinged(10), 1e9], 120),
        ([pinged(300), 599.0, CHANGE, 1e9], 599 + 600),
        ([pinged(300), pinged(30), 1e9], 600),
        ([pinged(30_000), 1e9], 120),
        ([pinged(300_000), 1e9], 600),
        ([pinged(1e15), 1e9], 2000),
        ([pinged(0), pinged(-1), 1e9], 120),
    ],
)
async def test_silent_stream_ends(
    pieces: list[bytes | float], lasts: float, autojump_clock: MockClock
) -> None:
    started = trio.current_time()
    _, error = await heard(serving(*pieces))
    assert isinstance(error, DeadlineError)
    assert "silent" in str(error)
    assert trio.current_time() - started == pytest.approx(lasts)
