"""Answers are read no further than their requests allow, and large ones are decoded in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import httpx
import msgspec
import pytest
import trio

from jmapfs.deadline import Deadline
from jmapfs.errors import JmapfsError, ProtocolError
from jmapfs.jmap import answers, lenient, mailboxes
from jmapfs.jmap.answers import SMALL_ANSWER, AnswerLimit, AnswerTooLargeError
from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.push import LARGEST_EVENT
from jmapfs.jmap.types import Email, decode
from tests.allocations import peak_memory
from tests.jmap.fake import (
    CREDENTIALS,
    SESSION_URL,
    FakeServer,
    email_document,
    opened,
    session_document,
)

MIB = 2**20
ENDLESS = 400 * MIB


class Endless(httpx.AsyncByteStream):
    """A body of 400 MiB that repeats a text; `sent` counts its bytes."""

    def __init__(self, text: bytes) -> None:
        self.sent = 0
        self._piece = text * (64 * 1024 // len(text))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.sent < ENDLESS:
            await trio.lowlevel.checkpoint()
            self.sent += len(self._piece)
            yield self._piece

    async def aclose(self) -> None:
        pass


def with_blob_get() -> FakeServer:
    document = session_document()
    document["capabilities"]["urn:ietf:params:jmap:blob"] = {"supportedDigestAlgorithms": ["sha"]}
    return FakeServer(session=document)


async def read_push(client: Client) -> None:
    async with client.push() as stream:
        async for _ in stream:
            pass


async def read_range(client: Client) -> None:
    async with client.stream_ranges("B1", 35) as stream:
        async for _ in stream:
            pass


REQUESTS: dict[str, tuple[int, Callable[[Client], Awaitable[object]]]] = {
    "one email": (5, lambda client: client.emails(["M1"])),
    "values of an email": (5, lambda client: client.email_values(["M1"])),
    "100 emails": (6, lambda client: client.emails([f"M{n}" for n in range(100)])),
    "email ids": (14, lambda client: client.query_ids(0)),
    "mailboxes": (66, lambda client: client.mailboxes()),
    "changes": (46, lambda client: client.email_changes("s")),
    "blobs": (
        2,
        lambda client: client.download_batch([("B1", 35), ("B2", 35)], deadline=Deadline(9)),
    ),
    "a part of a blob": (2, read_range),
    "digests": (5, lambda client: client.blob_digests(["B1"])),
    "push": (2, read_push),
}
"""Requests with the MiB that may be read for each attempt, and be in memory."""


@pytest.mark.parametrize("name", REQUESTS)
async def test_an_endless_answer_is_given_up(name: str) -> None:
    most, request = REQUESTS[name]
    server = with_blob_get()
    bodies: list[Endless] = []

    def endless(request: httpx.Request) -> httpx.Response | None:
        bodies.append(Endless(b" "))
        kind = "text/event-stream" if "events" in request.url.path else "application/json"
        return httpx.Response(200, headers={"Content-Type": kind}, stream=bodies[-1])

    async with opened(server) as client:
        server.before = endless
        with peak_memory() as peak:
            # A single email is bad then, and other requests fail.
            is_email = name in {"one email", "values of an email"}
            error = pytest.raises(JmapfsError, match=r"(larger|more) than")
            with nullcontext() if is_email else error:
                await request(client)
        assert bodies
        assert all(body.sent <= most * MIB for body in bodies)
        assert peak() <= (1.3 * most + 4) * MIB


async def test_an_announced_length_is_refused_before_it_is_read() -> None:
    server = FakeServer()
    async with opened(server) as client:
        body = Endless(b" ")
        headers = {"Content-Length": str(ENDLESS)}
        server.before = lambda _: httpx.Response(200, headers=headers, stream=body)
        with pytest.raises(AnswerTooLargeError, match=r"mail\.example\.org is larger than"):
            await client.query_ids(0)
        assert body.sent == 0


@pytest.mark.parametrize("status", [200, 401, 404, 503])
async def test_an_endless_answer_in_discovery_is_given_up(status: int) -> None:
    server, body = FakeServer(), Endless(b"<p>")
    server.before = lambda _: httpx.Response(status, stream=body)
    with peak_memory() as peak, pytest.raises(JmapfsError):
        async with connect(SESSION_URL, CREDENTIALS, network=server, longest_wait=0, deadline=1):
            pass
    assert body.sent <= 10 * MIB
    assert peak() <= 20 * MIB


SMALL_VALUES = {
    "objects": (b'{"methodResponses":[["Email/get",{"state":"s","list":[', b"{},"),
    "strings": (b'{"methodResponses":[["Email/query",{"ids":[', b'"a",'),
    "numbers": (b'{"methodResponses":[["Email/get",{"state":"s","list":[', b"1,"),
    "members": (b'{"methodResponses":[["Email/get",{"state":"s","x":{', b'"a":1,'),
}


@pytest.mark.parametrize("kind", SMALL_VALUES)
async def test_many_small_values_are_refused_before_they_are_decoded(kind: str) -> None:
    start, value = SMALL_VALUES[kind]
    server = FakeServer()
    async with opened(server) as client:
        content = start + value * (4 * MIB // len(value))
        server.before = lambda _: httpx.Response(200, content=content)
        with peak_memory() as peak:
            found = await client.emails(["M1"])
        assert [bad.id for bad in found.bad] == ["M1"]
        assert "more than 100,200 values" in found.bad[0].reason
        assert peak() < 8 * MIB


@pytest.fixture
def few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow a tenth of the values in answers, so that tests are fast."""
    for name in ("_BASE", "_REFERENCED", "_ID"):
        limit = getattr(answers, name)
        monkeypatch.setattr(answers, name, AnswerLimit(limit.bytes, limit.values // 10))


LARGE: dict[str, dict[str, Any]] = {
    "subject": {"subject": "x" * 5 * MIB},
    "sender": {"from": [{"name": "x" * 5 * MIB, "email": "x"}]},
    "thread": {"threadId": "x" * 5 * MIB},
    "keywords": {"keywords": {f"k{n}": True for n in range(1001)}},
    "more keywords": {"keywords": {f"k{n}": True for n in range(15_000)}},
    "mailboxes": {"mailboxIds": {f"m{n}": True for n in range(1001)}},
    "more mailboxes": {"mailboxIds": {f"m{n}": True for n in range(15_000)}},
    "false keywords": {"keywords": {f"k{n}": False for n in range(15_000)}},
}


@pytest.mark.usefixtures("few_values")
@pytest.mark.parametrize("field", LARGE)
async def test_an_email_that_is_too_large_is_bad_and_costs_only_itself(field: str) -> None:
    server = FakeServer(10)
    server.emails["M3"] = email_document(3, **LARGE[field])
    async with opened(server) as client:
        found = await client.emails(list(server.emails))
        assert [email.id for email in found.emails] == [f"M{n}" for n in range(10) if n != 3]
        assert [bad.id for bad in found.bad] == ["M3"]
        assert len(found.bad[0].reason) < 200
        assert len(server.requests) <= 12
        # Later requests have as many emails as before.
        assert client.max_objects_in_get == 500


@pytest.mark.parametrize("field", ["id", "blobId"])
async def test_an_id_of_ten_megabytes_is_no_id(field: str) -> None:
    server = FakeServer(600)
    server.emails["M3"] = email_document(3, **{field: "x" * 10 * MIB})
    async with opened(server) as client:
        found = await client.emails(list(server.emails))
        assert len(found.emails) == 599
        assert [bad.id for bad in found.bad] == ["M3"]
        assert len(found.bad[0].reason) < 200


def test_as_many_flags_as_allowed_are_kept() -> None:
    flags = {f"k{n}": True for n in range(1000)}
    document = email_document(1, keywords=flags, mailboxIds=flags | {"other": False})
    email = lenient.decode_leniently(json.dumps(document).encode(), Email, "it")
    assert (len(email.keywords), len(email.mailbox_ids)) == (1000, 1000)


@pytest.mark.usefixtures("few_values")
async def test_a_change_of_a_too_large_email_is_followed() -> None:
    server = FakeServer(4)
    server.emails["M3"] = email_document(3, keywords={f"k{n}": True for n in range(40_000)})
    server.change("Email/changes", oldState="s", newState="t", created=list(server.emails))
    async with opened(server) as client:
        changes = await client.email_changes("s")
        assert [email.id for email in changes.emails] == ["M0", "M1", "M2"]
        assert [bad.id for bad in changes.bad] == ["M3"]
        assert changes.new_state == "t"


async def test_an_account_has_a_largest_number_of_mailboxes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = FakeServer()
    monkeypatch.setattr(mailboxes, "MOST_MAILBOXES", 60)
    async with opened(server) as client:
        server.mailboxes = [{"id": f"m{n}", "name": "x"} for n in range(60)]
        assert len((await client.mailboxes())[0]) == 60
        server.mailboxes.append({"id": "m60", "name": "x"})
        with pytest.raises(ProtocolError, match=r"more than 60 mailboxes.* jmapfs can show"):
            await client.mailboxes()


@pytest.fixture
def decoding_threads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """For each decoded document: the bytes, and the thread."""
    seen: list[tuple[int, int]] = []

    def decode_and_note(data: bytes | msgspec.Raw, *args: Any, **kwargs: Any) -> Any:
        seen.append((len(data), threading.get_ident()))
        return decode(data, *args, **kwargs)

    for module in ("batches", "http", "lenient", "method_calls", "session"):
        monkeypatch.setattr(f"jmapfs.jmap.{module}.decode", decode_and_note)
    return seen


def odd_emails(server: FakeServer) -> None:
    for email in server.emails.values():
        email["subject"] = 5


def bad_emails(server: FakeServer) -> None:
    for email in server.emails.values():
        email |= {"size": None, "subject": "x" * 1000}


def many_mailboxes(server: FakeServer) -> None:
    server.mailboxes = [{"id": f"m{n}", "name": "x" * 50} for n in range(2000)]


DECODED: dict[str, tuple[Callable[[FakeServer], object], Callable[[Client], Awaitable[object]]]] = {
    "emails": (id, lambda client: client.emails([f"M{n}" for n in range(400)])),
    "bad emails": (bad_emails, lambda client: client.emails([f"M{n}" for n in range(400)])),
    "odd emails": (odd_emails, lambda client: client.emails([f"M{n}" for n in range(400)])),
    "mailboxes": (many_mailboxes, lambda client: client.mailboxes()),
    "ids": (
        lambda server: server.emails.update({"x" * 100 + str(n): {} for n in range(2000)}),
        lambda client: client.query_ids(0),
    ),
    "blobs": (
        lambda server: server.blobs.update({"B1": b"x" * 80_000, "B2": b"y" * 80_000}),
        lambda client: client.download_batch(
            [("B1", 80_000), ("B2", 80_000)], deadline=Deadline(30)
        ),
    ),
}


@pytest.mark.parametrize("name", DECODED)
async def test_large_answers_are_decoded_in_a_thread(
    name: str, decoding_threads: list[tuple[int, int]]
) -> None:
    prepare, request = DECODED[name]
    server = with_blob_get()
    server.emails = {f"M{n}": email_document(n) for n in range(400)}
    prepare(server)
    async with opened(server) as client:
        decoding_threads.clear()
        await request(client)
    assert max(size for size, _ in decoding_threads) > SMALL_ANSWER
    assert threading.get_ident() not in {thread for _, thread in decoding_threads}


async def test_small_answers_are_decoded_in_the_event_loop(
    decoding_threads: list[tuple[int, int]],
) -> None:
    async with opened(FakeServer(10)) as client:
        await client.emails(["M1", "M2"])
        await client.mailboxes()
    assert {thread for _, thread in decoding_threads} == {threading.get_ident()}


async def test_a_large_session_is_decoded_in_a_thread(
    decoding_threads: list[tuple[int, int]],
) -> None:
    accounts = {f"A{n}": {"name": f"account {n}"} for n in range(5000)}
    server = FakeServer(session=session_document(accounts=accounts))
    async with opened(server) as client:
        assert len(client.session.accounts) == 5000
    assert threading.get_ident() not in {thread for _, thread in decoding_threads}


def test_the_limits_follow_from_the_arguments() -> None:
    def most(name: str, **arguments: object) -> int:
        return answers.answer_limit([(name, arguments)]).bytes

    assert most("Email/get", ids=[]) == 4 * MIB
    assert most("Email/get", ids=["a"] * 64) == 5 * MIB
    assert most("Email/query", limit=1024) == 5 * MIB
    assert most("Email/query") == 68 * MIB
    assert most("Mailbox/get", ids=None) < 66 * MIB
    assert LARGEST_EVENT == MIB
