"""Digests and ranges by Blob/get: what the server says is returned, or an error is raised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from trio.testing import MockClock

from jmapfs.deadline import Deadline
from jmapfs.errors import (
    BlobMismatchError,
    BlobNotFoundError,
    DeadlineError,
    MethodError,
    ProtocolError,
)
from jmapfs.jmap.batches import BLOB, CYRUS_BLOB
from jmapfs.jmap.blob_get import BlobDigest
from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.credentials import BasicCredentials
from tests.cyrus import Account as CyrusAccount
from tests.jmap.fake import Arguments, FakeServer, RefusedError, opened, session_document

# ruff: noqa: ARG001 - the fixture sets the clock

MIB = 2**20


def session_with(*algorithms: object, sha1_ids: bool = False) -> dict[str, Any]:
    document = session_document()
    document["capabilities"][BLOB] = {}
    if sha1_ids:
        document["capabilities"][CYRUS_BLOB] = {}
    document["accounts"]["A1"]["accountCapabilities"] = {
        BLOB: {"supportedDigestAlgorithms": list(algorithms)}
    }
    return document


def serving(count: int, *algorithms: object) -> FakeServer:
    return FakeServer(count, session_with(*algorithms))


def sha256(content: bytes) -> BlobDigest:
    return BlobDigest("sha-256", hashlib.sha256(content).digest(), len(content))


def sha(content: bytes) -> BlobDigest:
    return BlobDigest("sha", hashlib.sha1(content).digest(), len(content))  # noqa: S324


async def ranges(client: Client, blob_id: str, size: int, **options: Any) -> list[bytes]:
    async with client.stream_ranges(blob_id, size, **options) as pieces:
        received = [piece async for piece in pieces]
        assert pieces.content_type == ""
        await pieces.aclose()
    return received


def content_of(server: FakeServer, size: int, blob_id: str = "B0") -> bytes:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    server.blobs[blob_id] = content
    return content


# --- Digests


@pytest.mark.parametrize(
    ("listed", "known"),
    [
        (["sha", "sha-256", "md5"], ("sha-256", "sha")),
        (["sha"], ("sha",)),
        (["sha-512", 7, None], ()),
        ([], ()),
    ],
)
async def test_the_algorithms_of_the_account_are_known_best_first(
    listed: list[object], known: tuple[str, ...]
) -> None:
    async with opened(serving(0, *listed)) as client:
        assert client.digest_algorithms == known
        assert client.can_digest == bool(known)


@pytest.mark.parametrize("details", [None, [], {"supportedDigestAlgorithms": "sha"}])
async def test_an_unusable_list_of_algorithms_is_no_algorithm(details: object) -> None:
    session = session_with()
    session["accounts"]["A1"]["accountCapabilities"][BLOB] = details
    async with opened(FakeServer(1, session)) as client:
        assert client.digest_algorithms == ()
        assert await client.blob_digests(["B0"]) == {}


async def test_the_algorithms_may_be_in_the_capability_of_the_session() -> None:
    session = session_document()
    session["capabilities"][BLOB] = {"supportedDigestAlgorithms": ["sha-256"]}
    async with opened(FakeServer(1, session)) as client:
        assert client.digest_algorithms == ("sha-256",)


async def test_digests_are_one_request_without_data() -> None:
    server = serving(3, "sha", "sha-256")
    async with opened(server) as client:
        digests, missing = await client.find_digests(["B0", "B2", "B7", "B0"])
        assert digests == {"B0": sha256(server.blobs["B0"]), "B2": sha256(server.blobs["B2"])}
        assert missing == ["B7"]
        assert client.traffic.blobs == client.traffic.bytes == 0
    [(name, arguments)] = server.calls
    assert name == "Blob/get"
    assert arguments["ids"] == ["B0", "B2", "B7"]
    assert arguments["properties"] == ["digest:sha-256", "size"]


async def test_sha1_is_requested_if_there_is_no_better_algorithm() -> None:
    server = serving(1, "sha")
    async with opened(server) as client:
        assert await client.blob_digests(["B0"]) == {"B0": sha(server.blobs["B0"])}


async def test_an_algorithm_that_the_server_rejects_is_not_requested_again() -> None:
    server = serving(2, "sha-256", "sha")

    def get(arguments: Arguments) -> Arguments:
        if "digest:sha-256" in arguments["properties"]:
            raise RefusedError("invalidArguments")
        return server.blob_get(arguments)

    server.methods["Blob/get"] = get
    async with opened(server) as client:
        assert await client.blob_digests(["B0"]) == {"B0": sha(server.blobs["B0"])}
        assert client.digest_algorithms == ("sha",)
        await client.blob_digests(["B1"])
    assert len(server.calls) == 3


async def test_digests_are_requested_in_parts_that_the_server_accepts() -> None:
    server = serving(10, "sha-256")

    def get(arguments: Arguments) -> Arguments:
        if len(arguments["ids"]) > 3:
            raise RefusedError("requestTooLarge")
        return server.blob_get(arguments)

    server.methods["Blob/get"] = get
    async with opened(server) as client:
        digests = await client.blob_digests(server.blobs)
        assert digests == {id_: sha256(content) for id_, content in server.blobs.items()}
    assert [len(arguments["ids"]) for _, arguments in server.calls] == [10, 5, 2, 2, 2, 2, 2]


async def test_another_error_is_raised() -> None:
    server = serving(1, "sha-256")

    def get(_: Arguments) -> Arguments:
        raise RefusedError("serverFail", "disk on fire")

    server.methods["Blob/get"] = get
    async with opened(server) as client:
        with pytest.raises(MethodError, match="disk on fire"):
            await client.blob_digests(["B0"])


@pytest.mark.parametrize("digest", [None, "", "AAAA"])
async def test_a_digest_of_the_wrong_length_is_left_out(digest: str | None) -> None:
    server = serving(2, "sha-256")

    def get(arguments: Arguments) -> Arguments:
        answer = server.blob_get(arguments)
        answer["list"][0]["digest:sha-256"] = digest
        return answer

    server.methods["Blob/get"] = get
    async with opened(server) as client:
        digests, missing = await client.find_digests(["B0", "B1"])
    assert set(digests) == {"B1"}
    assert missing == []


async def test_digests_come_from_sha1_ids_if_the_server_has_none() -> None:
    server = FakeServer(0, session_with(sha1_ids=True))
    blob_id = "G" + hashlib.sha1(b"mail").hexdigest()  # noqa: S324
    server.blobs = {blob_id: b"mail", "Gx": b"other"}
    gone = "G" + "0" * 40
    async with opened(server) as client:
        assert client.digest_algorithms == ()
        assert client.can_digest
        digests, missing = await client.find_digests([blob_id, "Gx", gone])
    assert digests == {blob_id: sha(b"mail")}
    assert missing == [gone]
    assert [arguments["properties"] for _, arguments in server.calls] == [["size"]]


async def test_nothing_is_requested_from_a_server_without_digests() -> None:
    server = FakeServer(1)
    async with opened(server) as client:
        assert not client.can_digest
        assert await client.find_digests(["B0"]) == ({}, [])
    assert not server.requests


# --- Ranges


@pytest.mark.parametrize("size", [1, 1000, 4 * MIB, 4 * MIB + 1, 9 * MIB])
async def test_a_blob_arrives_in_pieces(size: int) -> None:
    server = serving(0)
    content = content_of(server, size)
    async with opened(server) as client:
        pieces = await ranges(client, "B0", size)
        assert client.traffic.blobs == 1
        assert client.traffic.bytes == size
    assert b"".join(pieces) == content
    assert all(0 < len(piece) <= 4 * MIB for piece in pieces)
    assert len(server.calls) == -(-size // (4 * MIB))
    assert all(arguments["offset"] + arguments["length"] <= size for _, arguments in server.calls)


async def test_an_empty_blob_has_no_pieces() -> None:
    server = serving(0)
    content_of(server, 0)
    async with opened(server) as client:
        assert await ranges(client, "B0", 0) == []
        assert client.traffic.blobs == 1


@pytest.mark.parametrize("expected", [0, 1, 999, 1001, 5000])
async def test_the_size_in_the_responses_counts(expected: int) -> None:
    server = serving(0)
    content = content_of(server, 1000)
    async with opened(server) as client:
        assert b"".join(await ranges(client, "B0", expected)) == content


async def test_pieces_become_smaller_if_the_server_rejects_them() -> None:
    server = serving(0)
    content = content_of(server, 3 * MIB)

    def get(arguments: Arguments) -> Arguments:
        if arguments["length"] > MIB:
            raise RefusedError("requestTooLarge")
        return server.blob_get(arguments)

    server.methods["Blob/get"] = get
    async with opened(server) as client:
        assert b"".join(await ranges(client, "B0", 3 * MIB)) == content
    lengths = [arguments["length"] for _, arguments in server.calls]
    assert lengths == [3 * MIB, 3 * MIB // 2, *[3 * MIB // 4] * 4]


async def test_a_server_that_rejects_all_sizes_is_an_error() -> None:
    server = serving(0)
    content_of(server, MIB)

    def get(_: Arguments) -> Arguments:
        raise RefusedError("requestTooLarge")

    server.methods["Blob/get"] = get
    async with opened(server) as client:
        with pytest.raises(MethodError, match="requestTooLarge"):
            await ranges(client, "B0", MIB)
    assert len(server.calls) < 10


async def test_a_missing_blob_is_not_found() -> None:
    async with opened(serving(0)) as client:
        with pytest.raises(BlobNotFoundError, match="B0"):
            await ranges(client, "B0", 10)


def altered(server: FakeServer, *changes: dict[str, Any] | None) -> None:
    """Change the blob in each response in turn; None leaves the blob out."""
    left: Iterator[dict[str, Any] | None] = iter(changes)

    def get(arguments: Arguments) -> Arguments:
        answer = server.blob_get(arguments)
        change = next(left)
        answer["list"] = [] if change is None else [{**answer["list"][0], **change}]
        return answer

    server.methods["Blob/get"] = get


@pytest.mark.parametrize(
    "change", [None, {"data:asBase64": "AAAA"}, {"data:asBase64": None}, {"size": 11}, {"id": "B1"}]
)
async def test_a_response_without_the_range_is_an_error(change: dict[str, Any] | None) -> None:
    server = serving(0)
    content_of(server, 10)
    altered(server, change, change)
    async with opened(server) as client:
        with pytest.raises(ProtocolError):
            await ranges(client, "B0", 11)


async def test_a_size_that_changes_is_an_error() -> None:
    server = serving(0)
    content_of(server, 5 * MIB)
    altered(server, {}, {"size": 5 * MIB + 1})
    async with opened(server) as client:
        with pytest.raises(BlobMismatchError, match="a moment ago"):
            await ranges(client, "B0", 5 * MIB)


async def test_ranges_end_at_the_deadline(autojump_clock: MockClock) -> None:
    server = serving(1)
    async with opened(server) as client:
        server.delay = 100
        with pytest.raises(DeadlineError):
            await ranges(client, "B0", 100, deadline=Deadline(5))


# --- Cyrus


async def test_cyrus_has_ranges_and_sha1_ids_but_no_digests(cyrus_account: CyrusAccount) -> None:
    mails = [b"Subject: %d\r\n\r\n%s\r\n" % (n, b"x" * n * 30) for n in range(4)]
    cyrus_account.fill("INBOX", mails)
    credentials = BasicCredentials(cyrus_account.name, cyrus_account.password)
    by_id = {"G" + hashlib.sha1(mail).hexdigest(): mail for mail in mails}  # noqa: S324
    gone = "G" + "0" * 40
    async with connect(cyrus_account.url, credentials) as client:
        assert client.digest_algorithms == ()
        digests, missing = await client.find_digests([*by_id, gone])
        assert digests == {blob_id: sha(mail) for blob_id, mail in by_id.items()}
        assert missing == [gone]
        for blob_id, mail in by_id.items():
            for expected in (len(mail), 1, len(mail) + 100):
                assert b"".join(await ranges(client, blob_id, expected)) == mail
        with pytest.raises(BlobNotFoundError):
            await ranges(client, gone, 10)
        async with client.stream_blob(next(iter(by_id)), fresh=True) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == mails[0]
            assert chunks.content_type == "application/octet-stream"
