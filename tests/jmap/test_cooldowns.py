"""A busy server: each kind of request waits by itself, and unreadable headers are no headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from jmapfs.deadline import Deadline
from jmapfs.errors import JmapfsError, UnreachableError
from jmapfs.jmap.client import Client
from jmapfs.jmap.http_errors import LONGEST_RETRY_AFTER, decimal, retry_after
from jmapfs.jmap.push import Connected
from jmapfs.jmap.response import HttpRequest, RequestKind
from tests.jmap.fake import HOST, NO_EMAILS, Chunks, FakeServer, opened

# ruff: noqa: ARG001 - the fixture sets the clock

NOW = datetime(2024, 3, 1, 10, 0, 0, tzinfo=UTC)


async def fetch_session(client: Client) -> None:
    request = HttpRequest(
        method="GET", url=f"{HOST}/jmap/session", kind=RequestKind.SESSION, headers={}
    )
    await client.transport.fetch(request, deadline=Deadline(30))


async def call_a_method(client: Client) -> None:
    await client.request(NO_EMAILS, deadline=Deadline(30))


async def download(client: Client) -> None:
    await client.download_blob("B0")


async def listen(client: Client) -> None:
    async with client.push() as events:
        assert await anext(events) == Connected()


Use = Callable[[Client], Awaitable[None]]

KINDS: dict[RequestKind, tuple[str, Use]] = {
    RequestKind.SESSION: ("/jmap/session", fetch_session),
    RequestKind.API: ("/jmap/", call_a_method),
    RequestKind.DOWNLOAD: ("/jmap/download", download),
    RequestKind.PUSH: ("/jmap/events", listen),
}


def kind_of(request: httpx.Request) -> RequestKind:
    """Return the kind with the longest path that fits."""
    fitting = {path: kind for kind, (path, _) in KINDS.items() if path in request.url.path}
    return fitting[max(fitting, key=len)]


def events() -> httpx.Response:
    return httpx.Response(
        200, headers={"Content-Type": "text/event-stream"}, stream=Chunks(b": hello\n\n", 1e6)
    )


def is_push(request: httpx.Request) -> bool:
    return kind_of(request) is RequestKind.PUSH


@pytest.mark.parametrize("busy", RequestKind)
@pytest.mark.parametrize("status", [429, 503])
async def test_a_pause_of_one_kind_stops_no_other(
    autojump_clock: MockClock, busy: RequestKind, status: int
) -> None:
    server = FakeServer(1)
    async with opened(server) as client:

        def before(request: httpx.Request) -> httpx.Response | None:
            if kind_of(request) is busy:
                return httpx.Response(status, headers={"Retry-After": "3600"})
            return events() if is_push(request) else None

        server.before = before
        for _ in range(3):
            with pytest.raises(UnreachableError, match="it asks to wait 60 min"):
                await KINDS[busy][1](client)
        # Nobody waits for the event stream.
        assert client.transport.is_waiting is (busy is not RequestKind.PUSH)
        began = trio.current_time()
        for kind, (_, use) in KINDS.items():
            if kind is not busy:
                await use(client)
        assert trio.current_time() == began
        # The busy kind was asked only once.
        assert [kind_of(request) for request in server.requests].count(busy) == 1
        await trio.sleep(3600)
        server.before = lambda request: events() if is_push(request) else None
        await KINDS[busy][1](client)


@pytest.mark.parametrize("retry_after", ["", "0", "5", "60", "3600", "soon"])
async def test_a_server_that_counts_all_requests_is_not_flooded(
    autojump_clock: MockClock, retry_after: str
) -> None:
    """It answers 429 to each kind. Each kind learns by itself, and none asks all the time."""
    server = FakeServer(1)
    async with opened(server) as client, trio.open_nursery() as nursery:
        headers = {"Retry-After": retry_after} if retry_after else {}
        server.before = lambda _: httpx.Response(429, headers=headers)

        async def use_often(use: Use) -> None:
            while True:
                with trio.move_on_after(30):
                    try:
                        await use(client)
                    except JmapfsError:
                        await trio.sleep(0.5)

        for _, use in KINDS.values():
            for _ in range(1 if use is listen else 8):
                nursery.start_soon(use_often, use)
        await trio.sleep(60)
        first = len(server.requests)
        await trio.sleep(540)
        later = (len(server.requests) - first) / 9
        nursery.cancel_scope.cancel()
    longest = {"60": 12, "3600": 12}.get(retry_after, 100)
    assert first <= longest
    assert later <= longest


# --- Numbers and dates in headers

ODD_VALUES = [
    None,
    "",
    " ",
    "soon",
    "-5",
    "+5",
    "1.5",
    "1e3",
    "1e999",
    "inf",
    "nan",
    "0x10",
    "1_000",
    "5, 5",
    "²",
    "٣",
    "５",
    "5\x00",
    "\x00",
    "\x85",
    "🦆",
    "99999999999 GMT",
    "Fri, 99 Mar 2024 10:00:00 GMT",
    "Fri, 01 Mar 99999 10:00:00 GMT",
    "Fri, 01 Mar 10000 10:00:00 GMT",
    "Fri, 01 Mar 2024 10:00:20 +9999",
    "Fri, 01 Mar 2024 10:00:20 -999999999999",
    "Fri, 01 Mar 2024 99:00:00 GMT",
    "Fri, 01 Mar 2024 -1:-1:-1 GMT",
    "Fri, 01 Mar -2024 10:00:00 GMT",
    f"Fri, {9**30} Mar 2024 10:00:00 GMT",
    f"Fri, 01 Mar {9**30} 10:00:00 GMT",
    "Fri,,,,",
    ",",
    "2024-03-01T10:00:00Z",
    "1709287220.5",
]


@pytest.mark.parametrize("value", ODD_VALUES)
def test_an_unreadable_header_is_no_header(value: str | None) -> None:
    assert retry_after(value, now=NOW) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("00007", 7.0),
        (" 12 ", 12.0),
        (str(9**30), LONGEST_RETRY_AFTER),
        ("9" * 400, LONGEST_RETRY_AFTER),
        ("9" * 100_000, LONGEST_RETRY_AFTER),
        ("0" * 100_000 + "5", 5.0),
        ("1000000005", LONGEST_RETRY_AFTER),
        ("Fri, 01 Mar 2024 10:00:20 GMT", 20.0),
        ("Fri, 01 Mar 2024 10:00:20", 20.0),
        ("Fri, 01 Mar 2024 11:00:20 +0100", 20.0),
        ("Fri, 01 Mar 2024 05:00:20 EST", 20.0),
        ("Fri, 01 Mar 2024 09:00:00 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 01 Mar 2094 10:00:00 GMT", LONGEST_RETRY_AFTER),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER),
        ("Fri, 31 Dec 9999 23:59:59 -2359", LONGEST_RETRY_AFTER),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
    ],
)
def test_a_readable_header_is_a_number_of_seconds(value: str, seconds: float) -> None:
    assert retry_after(value, now=NOW) == seconds


@given(
    st.one_of(
        st.text(max_size=40),
        st.integers().map(str),
        st.floats().map(str),
        st.datetimes().map(format_datetime),
        st.builds(
            "{}, {} {} {} {}:{}:{} {}".format,
            st.sampled_from(["Fri", "", "x"]),
            st.integers(),
            st.sampled_from(["Mar", "Dec", "x", ""]),
            st.integers(-1, 10**12),
            st.integers(-1, 99),
            st.integers(-1, 99),
            st.integers(),
            st.one_of(st.sampled_from(["GMT", "EST", "-0000", "+2400"]), st.integers().map(str)),
        ),
    )
)
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
def test_any_header_is_a_bounded_pause_or_none(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER


@pytest.mark.parametrize("value", [*ODD_VALUES, " 5", "5 "])
def test_an_unreadable_number_is_none(value: str | None) -> None:
    assert decimal(value) is None


@given(st.integers(0))
def test_a_number_is_read(value: int) -> None:
    assert decimal(str(value)) == min(value, 10**20 - 1)
    assert decimal(f"000{value}") == min(value, 10**20 - 1)


@pytest.mark.parametrize("value", ODD_VALUES)
async def test_an_odd_header_ends_in_one_line(autojump_clock: MockClock, value: str | None) -> None:
    """Whatever a busy server sends, the request ends with its error at the deadline."""
    if value is None or not value.isascii() or "\x00" in value:
        value = "\xb2"
    server = FakeServer(1)
    async with opened(server) as client:
        headers = [(b"Retry-After", value.encode("latin-1"))]
        server.before = lambda _: httpx.Response(429, headers=headers)
        with pytest.raises(UnreachableError, match=r"^mail\.example\.org is busy: 429[^\n]*$"):
            await call_a_method(client)
        assert trio.current_time() < 31
