"""Downloads: the URL, the whole content, and every failure."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.deadline import Deadline
from jmapfs.errors import (
    BlobMismatchError,
    BlobNotFoundError,
    DeadlineError,
    JmapfsError,
    ProtocolError,
    RequestError,
    UnreachableError,
)
from jmapfs.jmap.blobs import expand
from jmapfs.jmap.http import Traffic
from tests.jmap.fake import NO_EMAILS, Chunks, FakeServer, opened, session_document

# ruff: noqa: ARG001 - the fixture sets the clock


LENGTH = {"Content-Length": "8"}


def serving(*answers: Callable[[], httpx.Response]) -> FakeServer:
    """Return a server with these responses to downloads, in turn; the last one is repeated."""
    server = FakeServer()
    left = list(answers)

    def before(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.startswith("/jmap/download/"):
            return None
        return (left.pop(0) if len(left) > 1 else left[0])()

    server.before = before
    return server


def body(*pieces: bytes | float | Exception, **headers: str) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(200, headers=headers, stream=Chunks(*pieces))


def of_eight(*pieces: bytes | float | Exception) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(200, headers=LENGTH, stream=Chunks(*pieces))


async def downloaded(server: FakeServer, **options: Any) -> bytes:
    async with opened(server) as client:
        return await client.download_blob("B0", **options)


async def test_download_returns_the_content() -> None:
    server = FakeServer(2)
    async with opened(server) as client:
        before = client.traffic.requests
        assert await client.download_blob("B1") == b"x" * 101
        assert client.traffic == Traffic(requests=before + 1, blobs=1, bytes=101)
    [request] = server.requests
    assert request.method == "GET"
    assert str(request.url) == (
        "https://mail.example.org/jmap/download/A1/B1/blob?accept=application%2Foctet-stream"
    )
    assert request.headers["accept"] == "*/*"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" in request.headers
    assert "range" not in request.headers


async def test_download_url_may_be_on_another_host() -> None:
    url = "https://content.example.net/{accountId}/{blobId}?n={name}&t={type}"
    server = FakeServer(session=session_document(downloadUrl=url))
    async with opened(server) as client:
        server.before = lambda _: httpx.Response(200, content=b"mail")
        await client.download_blob("B 1")
    assert str(server.requests[0].url) == (
        "https://content.example.net/A1/B%201?n=blob&t=application%2Foctet-stream"
    )


@pytest.mark.parametrize(
    "blob_id", ["a/../../etc", "..", ".", "a?b#c", "ä %2e", "x" * 255, "{name}"]
)
async def test_special_characters_of_a_blob_id_are_escaped(blob_id: str) -> None:
    server = FakeServer()
    async with opened(server) as client:
        server.before = lambda _: httpx.Response(200, content=b"mail")
        await client.download_blob(blob_id)
    raw = server.requests[0].url.raw_path.decode()
    assert raw.startswith("/jmap/download/A1/")
    assert raw.endswith("/blob?accept=application%2Foctet-stream")
    assert raw.count("/") == 5


def test_template_is_expanded() -> None:
    assert expand("/{a}/{b}{unknown}?{a}", {"a": "x/y", "b": "~-_é"}) == "/x%2Fy/~-_%C3%A9?x%2Fy"
    assert expand("{a}/x", {"a": ".."}) == "%2E%2E/x"


@pytest.mark.parametrize("content", [b"", b"\x00\xff\r\n"])
async def test_content_is_returned_unchanged(content: bytes) -> None:
    server = FakeServer()
    server.blobs["B0"] = content
    assert await downloaded(server) == content


async def test_empty_chunks_are_skipped() -> None:
    assert await downloaded(serving(body(b"a", b"", b"bc", b""))) == b"abc"


@pytest.mark.parametrize("status", [404, 410])
async def test_missing_blob_is_not_found(status: int) -> None:
    with pytest.raises(BlobNotFoundError, match="B0"):
        await downloaded(serving(lambda: httpx.Response(status)))


async def test_partial_content_is_an_error() -> None:
    with pytest.raises(RequestError, match="206"):
        await downloaded(serving(lambda: httpx.Response(206, content=b"part")))


async def test_redirect_is_refused() -> None:
    redirect = httpx.Response(302, headers={"Location": "/login"})
    with pytest.raises(ProtocolError, match="redirects"):
        await downloaded(serving(lambda: redirect))


BROKEN = [
    of_eight(b"12345"),
    of_eight(b"123", httpx.ReadError("reset")),
    of_eight(httpx.RemoteProtocolError("peer closed connection")),
    of_eight(b"123456789"),
    body(b"123", httpx.RemoteProtocolError("incomplete chunked read")),
    lambda: httpx.Response(500),
]


@pytest.mark.parametrize("broken", BROKEN)
async def test_download_that_breaks_off_is_retried(
    broken: Callable[[], httpx.Response], autojump_clock: MockClock
) -> None:
    assert await downloaded(serving(broken, broken, of_eight(b"1234", b"5678"))) == b"12345678"


@pytest.mark.parametrize("broken", BROKEN)
async def test_download_that_breaks_off_is_never_content(
    broken: Callable[[], httpx.Response], autojump_clock: MockClock
) -> None:
    server = serving(broken)
    with pytest.raises((UnreachableError, RequestError, BlobMismatchError)):
        await downloaded(server)
    assert trio.current_time() < 10


async def test_stream_continues_where_it_broke_off(autojump_clock: MockClock) -> None:
    server = serving(
        of_eight(b"12", b"34", httpx.ReadError("reset")),
        of_eight(b"123", httpx.ReadError("reset")),
        of_eight(b"123", b"456", b"78"),
    )
    async with opened(server) as client, client.stream_blob("B0") as chunks:
        received = [chunk async for chunk in chunks]
    assert received == [b"12", b"34", b"56", b"78"]


@pytest.mark.parametrize("second", [of_eight(b"1x34", b"5678"), body(b"123"), of_eight(b"x" * 8)])
async def test_stream_that_continues_with_other_content_is_an_error(
    second: Callable[[], httpx.Response], autojump_clock: MockClock
) -> None:
    server = serving(of_eight(b"1234", httpx.ReadError("reset")), second)
    with pytest.raises(BlobMismatchError, match="a moment ago"):
        await downloaded(server)


async def test_stalled_download_is_retried(autojump_clock: MockClock) -> None:
    server = serving(of_eight(b"123", 1000.0), of_eight(b"12345678"))
    assert await downloaded(server) == b"12345678"
    assert 10 <= trio.current_time() <= 12


async def test_slow_download_ends_at_the_deadline(autojump_clock: MockClock) -> None:
    pieces: list[bytes | float] = [b"x", 3.0]
    slow = body(*pieces * 1000)
    with pytest.raises(DeadlineError):
        await downloaded(serving(slow), deadline=Deadline(20))
    # Seven bytes have earned next to nothing.
    assert trio.current_time() == pytest.approx(20, abs=0.001)


async def test_received_bytes_give_more_time(autojump_clock: MockClock) -> None:
    """A transfer at 20 KiB a second may take longer than the deadline, one at 12 KiB may not."""
    for rate, ends in (20, True), (12, False):
        began = trio.current_time()
        pieces: list[bytes | float] = [b"x" * 2**10 * rate, 1.0]
        transfer = downloaded(serving(body(*pieces * 100)), deadline=Deadline(20))
        if ends:
            assert len(await transfer) == 2**10 * rate * 100
        else:
            with pytest.raises(DeadlineError):
                await transfer
            # 20 + 12 / 16 of the time.
            assert 75 < trio.current_time() - began < 85


@pytest.mark.parametrize("announced", [2**50, None])
async def test_a_stated_size_gives_no_time(
    autojump_clock: MockClock, announced: int | None
) -> None:
    """The server states a petabyte, and sends a byte every five seconds, without end."""
    headers = {} if announced is None else {"Content-Length": str(announced)}
    pieces: list[bytes | float] = [b"x", 5.0]
    endless = httpx.Response(200, headers=headers, stream=Chunks(*pieces * 10_000))
    server = FakeServer(1)
    server.before = lambda request: endless if "download" in request.url.path else None
    async with opened(server) as client:
        began = trio.current_time()
        with pytest.raises(DeadlineError):
            await client.download_blob("B0", size_hint=2**50)
        assert 29 < trio.current_time() - began < 31


async def test_bytes_of_method_responses_give_time_too(autojump_clock: MockClock) -> None:
    """A long list on a slow line: 3.5 MiB in 39 seconds."""
    server = FakeServer(1)
    async with opened(server) as client:
        spaces: list[bytes | float] = [b" " * 2**17, 1.4]
        server.before = lambda request: httpx.Response(
            200, stream=Chunks(*spaces * 28, server.answer(request).content)
        )
        assert (await client.request(NO_EMAILS))[0].error is None


async def test_silent_server_is_given_up_at_the_deadline(autojump_clock: MockClock) -> None:
    server = FakeServer(1)
    async with opened(server) as client:
        server.delay = 1000.0
        with pytest.raises(DeadlineError):
            await client.download_blob("B0", deadline=Deadline(4))
    assert trio.current_time() == pytest.approx(4)


async def test_stream_left_early_frees_its_place_in_the_budget() -> None:
    server = serving(body(*[b"x" * 1000] * 100))
    async with opened(server) as client:
        for _ in range(10):
            async with client.stream_blob("B0") as chunks:
                assert await anext(chunks) == b"x" * 1000
        assert client.traffic.blobs == 0


async def test_cancelled_download_frees_its_place_in_the_budget(autojump_clock: MockClock) -> None:
    server = serving(body(b"x", 5.0, b"x"))
    async with opened(server) as client:
        for _ in range(10):
            with trio.move_on_after(1):
                await client.download_blob("B0")
        assert await client.download_blob("B0") == b"xx"


async def test_stream_counts_in_the_budget(autojump_clock: MockClock) -> None:
    server = serving(body(b"x", b"y"))
    server.session["capabilities"]["urn:ietf:params:jmap:core"]["maxConcurrentRequests"] = 1
    async with opened(server) as client, client.stream_blob("B0") as chunks:
        await anext(chunks)
        with pytest.raises(DeadlineError):
            await client.request(NO_EMAILS, deadline=Deadline(3))
        assert await anext(chunks) == b"y"


async def test_blob_that_is_far_too_large_is_an_error() -> None:
    server = serving(body(*[b"x" * 2**20] * 70))
    with pytest.raises(BlobMismatchError, match="far larger"):
        await downloaded(server, size_hint=100)


async def test_content_of_unexpected_length_is_returned() -> None:
    server = FakeServer(1)
    assert len(await downloaded(server, size_hint=7)) == 100


async def test_unrequested_gzip_is_decoded() -> None:
    packed = gzip.compress(b"mail " * 1000)
    headers = {"Content-Encoding": "gzip"}
    assert await downloaded(serving(body(packed[:9], packed[9:], **headers))) == b"mail " * 1000
    twice = packed + gzip.compress(b"more")
    assert await downloaded(serving(body(twice, **headers))) == b"mail " * 1000 + b"more"
    assert await downloaded(serving(body(**headers))) == b""


async def test_truncated_gzip_is_an_error(autojump_clock: MockClock) -> None:
    packed = gzip.compress(b"mail " * 1000)
    headers = {"Content-Encoding": "gzip"}
    with pytest.raises(UnreachableError, match="has no end"):
        await downloaded(serving(body(packed[:-3], **headers)))


async def test_gzip_that_expands_too_much_is_an_error() -> None:
    packed = gzip.compress(bytes(200 * 2**20), compresslevel=1)
    with pytest.raises(BlobMismatchError, match="far larger"):
        await downloaded(serving(body(packed, **{"Content-Encoding": "gzip"})), size_hint=1)


@pytest.mark.parametrize(("coding", "content"), [("br", b"x"), ("gzip", b"x" * 20)])
async def test_unknown_or_broken_coding_is_an_error(coding: str, content: bytes) -> None:
    with pytest.raises(JmapfsError, match=r"coding|compression"):
        await downloaded(serving(body(content, **{"Content-Encoding": coding})))


@pytest.mark.parametrize(
    ("header", "content_type"),
    [
        ("message/rfc822", "message/rfc822"),
        ("Text/HTML; charset=UTF-8", "text/html"),
        ("", ""),
    ],
)
async def test_the_content_type_is_known_with_the_first_chunk(
    header: str, content_type: str
) -> None:
    server = serving(body(b"mail", **{"Content-Type": header}))
    async with opened(server) as client, client.stream_blob("B0") as chunks:
        assert chunks.content_type == ""
        await anext(chunks)
        assert chunks.content_type == content_type


async def test_a_fresh_download_asks_caches_not_to_answer() -> None:
    server = FakeServer(1)
    async with opened(server) as client:
        for fresh in (False, True):
            async with client.stream_blob("B0", fresh=fresh) as chunks:
                assert b"".join([chunk async for chunk in chunks]) == server.blobs["B0"]
    usual, fresh_one = server.requests
    assert "cache-control" not in usual.headers
    assert fresh_one.headers["cache-control"] == "no-cache"
