"""Many blobs in one request: a blob that is not whole is left out, and others are not affected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.deadline import Deadline
from jmapfs.errors import (
    AuthenticationError,
    DeadlineError,
    JmapfsError,
    MethodError,
    ProtocolError,
    RequestError,
    UnreachableError,
)
from jmapfs.jmap.batches import BLOB, CYRUS_BLOB, MAX_BLOBS, MAX_BYTES, BlobGetLimits
from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.credentials import BasicCredentials
from jmapfs.jmap.http import Traffic
from tests import corpus
from tests.cyrus import Account as CyrusAccount
from tests.jmap.fake import (
    CORE,
    LIMIT,
    MAIL,
    Arguments,
    Chunks,
    FakeServer,
    RefusedError,
    blob_document,
    opened,
    session_document,
)
from tests.server import Account, MailServer, MethodFault, running_server

# ruff: noqa: ARG001 - the fixture sets the clock


MOST = BlobGetLimits(MAX_BLOBS, MAX_BYTES)


def session_with(*capabilities: str, **limits: Any) -> dict[str, Any]:
    document = session_document()
    document["capabilities"][CORE].update(limits)
    document["capabilities"].update((name, {}) for name in capabilities)
    return document


def serving(count: int = 3, **limits: Any) -> FakeServer:
    """Return a server with Blob/get and `count` blobs of 100 bytes and more."""
    return FakeServer(count, session_with(BLOB, **limits))


def all_of(server: FakeServer) -> list[tuple[str, int]]:
    return [(blob_id, len(content)) for blob_id, content in server.blobs.items()]


async def batch(client: Client, blobs: Iterable[tuple[str, int]]) -> dict[str, bytes]:
    return await client.download_batch(list(blobs), deadline=Deadline(30))


def sizes_asked(server: FakeServer) -> list[int]:
    return [len(arguments["ids"]) for _, arguments in server.calls]


def answering(server: FakeServer, change: Callable[[list[Any]], object]) -> FakeServer:
    """Apply `change` to the list of each response to Blob/get."""

    def get(arguments: Arguments) -> Arguments:
        answer = server.blob_get(arguments)
        change(answer["list"])
        return answer

    server.methods["Blob/get"] = get
    return server


def refusing(server: FakeServer, error: JmapfsError | RefusedError | httpx.Response) -> FakeServer:
    """Reject every Blob/get, as a method or as a whole request."""

    def get(_: Arguments) -> Arguments:
        assert isinstance(error, RefusedError)
        raise error

    if isinstance(error, httpx.Response):
        server.before = lambda request: error if b"Blob/get" in request.content else None
    else:
        server.methods["Blob/get"] = get
    return server


# --- Requests and responses


async def test_batch_is_one_request() -> None:
    server = serving()
    async with opened(server) as client:
        before = client.traffic.requests
        assert await batch(client, all_of(server)) == server.blobs
        assert client.traffic == Traffic(requests=before + 1, blobs=3, bytes=303)
    [request] = server.requests
    document = json.loads(request.content)
    assert document["using"] == [CORE, MAIL, BLOB]
    assert document["methodCalls"] == [
        [
            "Blob/get",
            {
                "accountId": "A1",
                "ids": ["B0", "B1", "B2"],
                "properties": ["data:asBase64", "size"],
            },
            "0",
        ]
    ]


@pytest.mark.parametrize(
    ("capabilities", "using"),
    [
        ([BLOB], [BLOB]),
        ([CYRUS_BLOB], [CYRUS_BLOB]),
        ([BLOB, CYRUS_BLOB], [CYRUS_BLOB, BLOB]),
    ],
)
async def test_each_capability_enables_batches(capabilities: list[str], using: list[str]) -> None:
    server = FakeServer(2, session_with(*capabilities))
    async with opened(server) as client:
        assert client.batch_limits == MOST
        assert await batch(client, all_of(server)) == server.blobs
    assert json.loads(server.requests[0].content)["using"] == [CORE, MAIL, *using]


async def test_no_capability_means_no_batches() -> None:
    server = FakeServer(2)
    async with opened(server) as client:
        assert client.batch_limits is None
        assert await batch(client, all_of(server)) == {}
    assert not server.requests


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", bytes(range(256)), b"\r\n.\r\n", b"\xff\xff\xff", "Été\r\n".encode()],
)
async def test_content_is_returned_unchanged(content: bytes) -> None:
    server = serving(1)
    server.blobs["B0"] = content
    async with opened(server) as client:
        assert await batch(client, all_of(server)) == {"B0": content}


async def test_slashes_may_be_escaped_in_json() -> None:
    server = serving(1)
    answer = (
        '{"methodResponses":[["Blob/get",{"list":['
        r'{"id":"B0","data:asBase64":"\/\/\u002f\/","size":3}'
        ']},"0"]]}'
    )
    async with opened(server) as client:
        server.before = lambda _: httpx.Response(200, text=answer)
        assert await batch(client, [("B0", 3)]) == {"B0": b"\xff\xff\xff"}


async def test_empty_batch_sends_no_request() -> None:
    server = serving()
    async with opened(server) as client:
        assert await batch(client, []) == {}
    assert not server.requests


async def test_duplicate_ids_are_requested_once() -> None:
    server = serving(2)
    async with opened(server) as client:
        assert await batch(client, [*all_of(server), ("B0", 100)]) == server.blobs
        assert client.traffic.blobs == 2
    assert server.calls[0][1]["ids"] == ["B0", "B1"]


async def test_content_of_unexpected_length_is_returned() -> None:
    server = serving(2)
    async with opened(server) as client:
        assert await batch(client, [("B0", 7), ("B1", 0)]) == server.blobs


async def test_unrequested_blobs_are_ignored() -> None:
    server = answering(serving(3), lambda items: items.append(blob_document("B2", b"y")))
    async with opened(server) as client:
        assert await batch(client, all_of(server)[:2]) == {"B0": b"x" * 100, "B1": b"x" * 101}
        assert client.traffic.blobs == 2


# --- Blobs that are not whole


BROKEN: list[dict[str, Any]] = [
    {"isTruncated": True},
    {"isTruncated": "perhaps"},
    {"data:asBase64": None},
    {"data:asBase64": 7},
    {"data:asBase64": ""},
    {"data:asBase64": "not base64!"},
    {"data:asBase64": "eHh4\r\neHh4", "size": 6},
    {"data:asBase64": "eHh4eA", "size": 4},
    {"data:asBase64": "eHh4_-94", "size": 6},
    {"size": 99},
    {"size": 101},
    {"size": None},
    {"size": -1},
    {"size": "100"},
    {"id": None},
    {"id": ""},
]


@pytest.mark.parametrize("change", BROKEN, ids=repr)
async def test_invalid_blob_is_left_out_and_the_others_are_returned(change: dict[str, Any]) -> None:
    server = answering(serving(3), lambda items: items[0].update(change))
    async with opened(server) as client:
        assert await batch(client, all_of(server)) == {"B1": b"x" * 101, "B2": b"x" * 102}
        assert (client.traffic.blobs, client.traffic.bytes) == (2, 203)
    assert len(server.requests) == 1


def without_data(items: list[Any]) -> None:
    items[0] = {"id": "B0", "size": 100}


def null(items: list[Any]) -> None:
    items[0] = None


def duplicate(items: list[Any]) -> None:
    items.append(blob_document("B0", b"y" * 100))


def duplicate_truncated(items: list[Any]) -> None:
    items.append(blob_document("B0", b"x" * 100, isTruncated=True))


def two_duplicates(items: list[Any]) -> None:
    items[:0] = [blob_document("B0", b"y" * 100), blob_document("B0", b"x" * 100)]


@pytest.mark.parametrize(
    "change",
    [without_data, null, duplicate, duplicate_truncated, two_duplicates],
)
async def test_malformed_blob_is_left_out_and_the_others_are_returned(
    change: Callable[[list[Any]], None],
) -> None:
    server = answering(serving(2), change)
    async with opened(server) as client:
        assert await batch(client, all_of(server)) == {"B1": b"x" * 101}


async def test_equal_duplicates_are_accepted() -> None:
    server = answering(serving(2), lambda items: items.extend(list(items)))
    async with opened(server) as client:
        assert await batch(client, all_of(server)) == server.blobs
        assert client.traffic.blobs == 2


async def test_blob_that_is_not_found_is_left_out() -> None:
    server = serving(3)
    wanted = all_of(server)
    del server.blobs["B1"]
    async with opened(server) as client:
        assert await batch(client, wanted) == server.blobs
    assert len(server.requests) == 1


# --- Limits


@pytest.mark.parametrize(
    ("limits", "blobs"),
    [
        ({"maxObjectsInGet": 7}, 7),
        ({"maxObjectsInGet": 100_000}, MAX_BLOBS),
        ({"maxSizeRequest": 4000}, 11),
        ({"maxSizeRequest": 1000}, None),
        ({"maxObjectsInGet": 1}, None),
    ],
)
async def test_session_limits_bound_the_batch(limits: dict[str, int], blobs: int | None) -> None:
    server = serving(MAX_BLOBS + 10, **limits)
    async with opened(server) as client:
        assert client.batch_limits == (None if blobs is None else BlobGetLimits(blobs, MAX_BYTES))
        found = await batch(client, all_of(server))
    assert found == ({} if blobs is None else server.blobs)
    asked = sizes_asked(server)
    assert sum(asked) == len(found)
    assert all(size <= (blobs or 0) for size in asked)


async def test_request_fits_the_maximum_size() -> None:
    server = serving(maxSizeRequest=4000)
    server.blobs = {f"{n:03}" + "é" * 252: b"x" for n in range(11)}
    async with opened(server) as client:
        assert await batch(client, all_of(server)) == server.blobs
    assert all(len(request.content) <= 4000 for request in server.requests)
    assert sizes_asked(server) == [5, 5, 1]


async def test_batches_stay_within_the_byte_limit() -> None:
    server = serving()
    server.blobs = {f"B{n}": b"x" * 300_000 for n in range(7)}
    server.blobs["large"] = b"x" * (MAX_BYTES + 1)
    async with opened(server) as client:
        found = await batch(client, reversed(all_of(server)))
    # Blobs that are larger than a batch are downloaded one by one.
    assert set(found) == {f"B{n}" for n in range(7)}
    assert sizes_asked(server) == [3, 3, 1]


def taking(server: FakeServer, *, blobs: int = 10**6, size: int = 10**9) -> FakeServer:
    """Reject batches with more blobs or bytes than these."""

    def get(arguments: Arguments) -> Arguments:
        ids = arguments["ids"]
        if len(ids) > blobs or sum(len(server.blobs[i]) for i in ids) > size:
            raise RefusedError("requestTooLarge")
        return server.blob_get(arguments)

    server.methods["Blob/get"] = get
    return server


async def test_batch_with_too_many_blobs_is_halved() -> None:
    server = taking(serving(40), blobs=12)
    async with opened(server) as client:
        assert await batch(client, all_of(server)) == server.blobs
        assert sizes_asked(server) == [40, 20, 10, 10, 10, 10]
        assert client.batch_limits == BlobGetLimits(10, MAX_BYTES)
        assert client.traffic.blobs == 40
        # The lower limit is kept, and does not apply to emails.
        server.requests.clear()
        assert await batch(client, all_of(server)) == server.blobs
        assert sizes_asked(server) == [10, 10, 10, 10]
        assert client.max_objects_in_get == 500


async def test_batch_with_too_many_bytes_is_halved() -> None:
    server = serving()
    server.blobs = {f"B{n}": b"x" * 60_000 for n in range(17)} | {"large": b"x" * 300_000}
    taking(server, size=250_000)
    async with opened(server) as client:
        found = await batch(client, all_of(server))
        assert found == {n: c for n, c in server.blobs.items() if n != "large"}
        limits = client.batch_limits
        assert limits is not None
        assert limits.blobs == MAX_BLOBS
        assert 125_000 <= limits.bytes <= 250_000
        server.requests.clear()
        assert await batch(client, all_of(server)) == found
    assert sum(sizes_asked(server)) == 17


@pytest.mark.parametrize(
    "refused",
    [
        httpx.Response(413),
        httpx.Response(400, json={"type": LIMIT, "limit": "maxSizeRequest"}),
        httpx.Response(400, json={"type": LIMIT, "limit": "maxObjectsInGet"}),
    ],
)
async def test_request_that_is_too_large_is_halved(refused: httpx.Response) -> None:
    server = serving(40)
    async with opened(server) as client:
        server.before = lambda request: refused if len(request.content) > 350 else None
        assert await batch(client, all_of(server)) == server.blobs
        assert sizes_asked(server) == [40, 20, 20]
        assert client.batch_limits == BlobGetLimits(20, MAX_BYTES)


@pytest.mark.parametrize("refused", [RefusedError("requestTooLarge"), httpx.Response(413)])
@pytest.mark.parametrize("size", [0, 1, 100, 100_000])
async def test_server_that_rejects_everything_gets_few_requests(
    refused: RefusedError | httpx.Response, size: int
) -> None:
    server = serving()
    server.blobs = {f"B{n}": b"x" * size for n in range(50)}
    refusing(server, refused)
    async with opened(server) as client:
        for _ in range(10):
            assert await batch(client, all_of(server)) == {}
    assert len(server.requests) <= 20


# --- Servers without Blob/get


@pytest.mark.parametrize(
    "refused",
    [
        RefusedError("unknownMethod"),
        RefusedError("invalidArguments"),
        RefusedError("forbidden"),
        RefusedError("accountNotSupportedByMethod"),
        httpx.Response(400, json={"type": "urn:ietf:params:jmap:error:unknownCapability"}),
    ],
    ids=["unknownMethod", "invalidArguments", "forbidden", "account", "unknownCapability"],
)
async def test_unsupported_server_is_not_asked_again(
    refused: RefusedError | httpx.Response,
) -> None:
    server = refusing(serving(2), refused)
    async with opened(server) as client:
        assert await batch(client, all_of(server)) == {}
        assert client.batch_limits is None
        assert await batch(client, all_of(server)) == {}
        assert len(server.requests) == 1
        assert await client.download_blob("B1") == server.blobs["B1"]


async def test_batches_end_when_the_session_loses_the_capability() -> None:
    server = serving(2)
    async with opened(server) as client:
        server.session = session_document(state="s2")
        assert await batch(client, all_of(server)) == server.blobs
        await client.email_state()
        assert client.batch_limits is None


# --- Errors


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (RefusedError("serverFail"), MethodError),
        (RefusedError("accountNotFound"), MethodError),
        (httpx.Response(400, json={"type": "about:blank"}), RequestError),
        (httpx.Response(401), AuthenticationError),
        (httpx.Response(500), RequestError),
        (httpx.Response(200, text="<html>"), ProtocolError),
        (httpx.Response(200, json={"methodResponses": []}), ProtocolError),
    ],
    ids=str,
)
async def test_other_errors_of_the_request_are_raised(
    refused: RefusedError | httpx.Response, error: type[JmapfsError], autojump_clock: MockClock
) -> None:
    server = refusing(serving(2), refused)
    async with opened(server) as client:
        with pytest.raises(error):
            await batch(client, all_of(server))
        assert client.batch_limits == MOST
        server.before = None
        server.methods["Blob/get"] = server.blob_get
        if error is AuthenticationError:
            # A secret that was refused is not sent again at once.
            with pytest.raises(AuthenticationError):
                await batch(client, all_of(server))
            return
        assert await batch(client, all_of(server)) == server.blobs


@pytest.mark.parametrize("answer", [{"list": None}, {"accountId": "A2", "list": []}, {}])
async def test_invalid_response_is_an_error(answer: Arguments) -> None:
    server = serving(2)
    server.methods["Blob/get"] = lambda _: dict(answer)
    async with opened(server) as client:
        with pytest.raises(ProtocolError):
            await batch(client, all_of(server))


async def test_response_without_end_does_not_fill_memory() -> None:
    server = serving(2)
    sent = 0

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            nonlocal sent
            yield b'{"methodResponses":[["Blob/get",{"list":[{"id":"B0","data:asBase64":"'
            while True:
                await trio.lowlevel.checkpoint()
                sent += 2**20
                yield b"A" * 2**20

    async with opened(server) as client:
        server.before = lambda _: httpx.Response(200, stream=Endless())
        with pytest.raises(ProtocolError, match="larger than"):
            await batch(client, all_of(server))
    assert 2**20 <= sent <= 3 * 2**20


async def test_cancelled_batch_frees_its_place_in_the_budget(autojump_clock: MockClock) -> None:
    server = serving(2, maxConcurrentRequests=1)
    async with opened(server) as client:
        server.before = lambda _: httpx.Response(200, stream=Chunks(b'{"method', 5.0))
        for _ in range(3):
            with trio.move_on_after(1):
                await batch(client, all_of(server))
        server.before = None
        assert await batch(client, all_of(server)) == server.blobs


async def test_response_that_breaks_off_is_requested_again(autojump_clock: MockClock) -> None:
    server = serving(2)
    broken = [httpx.Response(200, stream=Chunks(b'{"method', httpx.ReadError("reset")))]
    async with opened(server) as client:
        server.before = lambda _: broken.pop() if broken else None
        assert await batch(client, all_of(server)) == server.blobs
        server.before = lambda _: httpx.Response(200, stream=Chunks(httpx.ReadError("reset")))
        with pytest.raises(UnreachableError):
            await batch(client, all_of(server))


async def test_deadline_covers_all_requests_of_a_batch(autojump_clock: MockClock) -> None:
    server = serving(40, maxObjectsInGet=10)
    async with opened(server) as client:
        server.delay = 3.0
        with pytest.raises(DeadlineError):
            await client.download_batch(all_of(server), deadline=Deadline(8))
    # The bytes of two responses have given a little time.
    assert trio.current_time() == pytest.approx(8, abs=0.5)
    assert len(server.requests) == 3


# --- Servers that listen on a port


def account_with(*contents: bytes) -> tuple[Account, dict[str, bytes]]:
    account = Account()
    inbox = account.create_mailbox("Inbox")
    for content in contents:
        account.add_email(content, [inbox])
    return account, dict(zip((e.blob_id for e in account.emails.values()), contents, strict=True))


@pytest.mark.parametrize("capability", [BLOB, CYRUS_BLOB])
@pytest.mark.parametrize("fault", ["wrong-size", "truncated", "not-found", "null", "not-base64"])
async def test_server_faults_never_give_wrong_content(capability: str, fault: Any) -> None:
    account, contents = account_with(*(b"Subject: %d\r\n\r\nx\r\n" % n for n in range(5)))
    server = MailServer(account)
    server.quirks.blob_capability = capability
    server.quirks.blob_fault = fault
    server.quirks.fault_blob_ids = [broken := list(contents)[2]]
    credentials = BasicCredentials("alice@example.org", "secret")
    async with running_server(server) as url, connect(url, credentials) as client:
        wanted = [(blob_id, len(content)) for blob_id, content in contents.items()]
        found = await batch(client, wanted)
        assert found == {n: c for n, c in contents.items() if n != broken}
        server.quirks.method_faults = [MethodFault("Blob/get", "unknownMethod", count=-1)]
        assert await batch(client, wanted) == {}
        assert client.batch_limits is None
    assert server.counts.methods["Blob/get"] == 2
    # Responses over loopback are not compressed.
    assert set(server.counts.headers["api accept-encoding"]) == {"identity"}


async def test_batches_from_cyrus_are_correct(cyrus_account: CyrusAccount) -> None:
    mails = corpus.all_mails()
    cyrus_account.fill("INBOX", mails)
    credentials = BasicCredentials(cyrus_account.name, cyrus_account.password)
    async with connect(cyrus_account.url, credentials) as client:
        limits = client.batch_limits
        assert limits == MOST
        wanted = await all_blobs(client)
        assert sorted(wanted.values()) == sorted(map(len, mails))
        before = client.traffic.requests
        found = await batch(client, wanted.items())
        assert sorted(found.values()) == sorted(mails)
        assert {blob_id: len(content) for blob_id, content in found.items()} == wanted
        assert client.traffic.blobs == len(mails)
        assert client.traffic.bytes == sum(map(len, mails))
        assert client.traffic.requests - before <= 2 * len(mails) // limits.blobs
        # Missing blobs among others.
        some = list(wanted.items())[:4]
        absent = [("G" + "0" * 40, 5), ("nonsense", 5)]
        assert set(await batch(client, [*some[:2], *absent, *some[2:]])) == set(dict(some))


async def all_blobs(client: Client) -> dict[str, int]:
    ids = (await client.query_ids(0)).ids
    return {email.blob_id: email.size for email in (await client.emails(ids)).emails}
