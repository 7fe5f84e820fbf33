"""Every number that a server sends, with every odd value, from its JSON to the attributes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest

from jmapfs.content.confirmation import most_bytes
from jmapfs.deadline import Deadline
from jmapfs.errors import JmapfsError, UnreachableError
from jmapfs.fuse.directory_cache import AttributeWriter, file_system_statistics
from jmapfs.index.database import IndexDatabase
from jmapfs.index.rows import AccountState
from jmapfs.inodes import ROOT_INODE
from jmapfs.jmap.client import Client
from jmapfs.jmap.types import Email, Mailbox
from jmapfs.tree.tree import Kind, Ownership, Tree
from tests.indexed import email, mailbox
from tests.jmap.fake import (
    Arguments,
    Chunks,
    FakeServer,
    Method,
    email_document,
    opened,
    with_limits,
)

LARGEST = 2**53 - 1

NUMBERS = {
    "zero": "0",
    "negative": "-1",
    "negative zero": "-0.0",
    "largest": str(LARGEST),
    "smallest": str(-LARGEST),
    "too large": str(LARGEST + 1),
    "31 bits": str(2**31),
    "32 bits": str(2**32),
    "63 bits": str(2**63),
    "64 bits": str(2**64),
    "200 bits": str(2**200),
    "-200 bits": str(-(2**200)),
    "5000 digits": "9" * 5000,
    "fraction": "0.5",
    "whole": "7.0",
    "exponent": "1e15",
    "large exponent": "1e300",
    "infinite": "1e999",
    "tiny": "1e-320",
    "text": '"12"',
    "true": "true",
}


OBJECTS = [("mailbox", "sortOrder"), ("mailbox", "totalEmails"), ("email", "size")]
ANSWERS = [("Email/query", "total"), ("Email/query", "position"), ("Blob/get", "size")]
LIMITS = (
    *("maxObjectsInGet", "maxCallsInRequest", "maxConcurrentRequests"),
    *("maxSizeRequest", "maxSizeUpload"),
)
BLOB = "urn:ietf:params:jmap:blob"


def mark(number: str) -> str:
    """Return a text to be replaced with a number, as it is written in NUMBERS."""
    return f"@{number}@"


def with_numbers(server: FakeServer) -> FakeServer:
    """Replace marks in the answers of a server."""
    server.session["capabilities"][BLOB] = {"supportedDigestAlgorithms": ["sha"]}

    def answer(request: httpx.Request) -> httpx.Response:
        response = server.answer(request)
        content = response.read()
        for name, text in NUMBERS.items():
            content = content.replace(f'"{mark(name)}"'.encode(), text.encode())
        return httpx.Response(response.status_code, content=content)

    server.before = answer
    return server


def with_mark(method: Method, field: str, number: str) -> Method:
    """Change a field of the results of a method, or of each object in them."""

    def answer(arguments: Arguments) -> Arguments:
        result = method(arguments)
        changed = {field: mark(number)}
        if "ids" in result:
            return result | changed
        return result | {"list": [item | changed for item in result["list"]]}

    return answer


async def read_all(client: Client) -> tuple[list[Mailbox], list[Email]]:
    """Call every method that receives numbers. An error of jmapfs is fine."""
    boxes, emails = list[Mailbox](), list[Email]()
    with contextlib.suppress(JmapfsError):
        boxes, _ = await client.mailboxes()
    with contextlib.suppress(JmapfsError):
        emails = (await client.emails([f"M{n}" for n in range(200)])).emails
    with contextlib.suppress(JmapfsError):
        await client.email_values(["M3"])
    with contextlib.suppress(JmapfsError):
        await client.counts()
    with contextlib.suppress(JmapfsError):
        await client.query_ids(0, count=True)
    with contextlib.suppress(JmapfsError):
        await client.download_batch([("B3", 103), ("B4", 104)], deadline=Deadline(30))
    with contextlib.suppress(JmapfsError):
        await client.blob_digests(["B3"])
    with contextlib.suppress(JmapfsError):
        async with client.stream_ranges("B3", 103) as stream:
            async for _ in stream:
                pass
    return boxes, emails


def show(directory: Path, boxes: list[Mailbox], emails: list[Email]) -> int:
    """Put everything into an index, and make all attributes for the kernel; count the files."""
    database = IndexDatabase(directory)
    database.prepare()
    attributes, files = AttributeWriter(Ownership(0, 0)), 0
    with database.writer() as writer, database.reader() as reader:
        with writer.transaction():
            writer.replace_mailboxes(boxes)
            writer.put_emails(emails)
            writer.set_state(AccountState(account_id="a", email_state="s", complete=True))
        tree = Tree(reader)
        pending = [ROOT_INODE]
        while pending:
            for _, entry in tree.listing(pending.pop()).entries():
                attributes.entry(entry)
                assert most_bytes(entry.size) >= entry.size
                if entry.kind is Kind.DIRECTORY:
                    pending.append(entry.inode)
                else:
                    files += 1
        size, count = tree.totals()
        file_system_statistics(size=size, files=count)
    return files - 1


@pytest.mark.parametrize(("kind", "field"), OBJECTS)
async def test_an_odd_number_costs_at_most_its_object(
    tmp_path: Path, kind: str, field: str
) -> None:
    server = FakeServer(20)
    for number, name in enumerate(NUMBERS, 100):
        if kind == "mailbox":
            server.mailboxes.append({"id": name, "name": name, field: mark(name)})
        else:
            server.emails[f"M{number}"] = email_document(number, **{field: mark(name)})
    async with opened(with_numbers(server)) as client:
        boxes, emails = await read_all(client)
    assert [box.id for box in boxes] == [box["id"] for box in server.mailboxes]
    usable = {"zero", "negative zero", "largest", "31 bits", "32 bits", "whole", "exponent"}
    assert len(emails) == 20 + (len(usable) if kind == "email" else 0)
    assert show(tmp_path, boxes, emails) == len(emails)


@pytest.mark.parametrize(("method", "field"), ANSWERS)
async def test_an_odd_number_costs_at_most_its_answer(method: str, field: str) -> None:
    for number in NUMBERS:
        server = FakeServer(20)
        server.methods[method] = with_mark(server.methods[method], field, number)
        async with opened(with_numbers(server)) as client:
            boxes, emails = await read_all(client)
        assert (len(boxes), len(emails)) == (1, 20), number


@pytest.mark.parametrize("field", LIMITS)
async def test_an_odd_limit_is_at_least_one_and_has_an_end(field: str) -> None:
    for number in NUMBERS:
        server = with_numbers(FakeServer(3, with_limits(**{field: mark(number)})))
        async with opened(server) as client:
            await read_all(client)
            limits = client.session.limits
        for limit in (
            *(limits.max_calls_in_request, limits.max_objects_in_get),
            *(limits.max_size_request, limits.max_concurrent_requests),
        ):
            assert 1 <= limit <= LARGEST, number


def test_the_sizes_of_all_files_may_exceed_63_bits(tmp_path: Path) -> None:
    emails = [email(f"e{number}", "in", size=LARGEST) for number in range(1200)]
    assert show(tmp_path, [mailbox("in", "Inbox")], emails) == 1200


@pytest.mark.parametrize("text", [*NUMBERS.values(), "NaN"], ids=[*NUMBERS, "NaN"])
async def test_an_odd_interval_of_pings_is_bounded_or_ignored(text: str) -> None:
    ping = f'event: ping\ndata: {{"interval": {text}}}\n\n'.encode()
    server = FakeServer()

    def answer(request: httpx.Request) -> httpx.Response | None:
        if "events" not in request.url.path:
            return None
        return httpx.Response(
            200, headers={"Content-Type": "text/event-stream"}, stream=Chunks(ping)
        )

    server.before = answer
    async with opened(server) as client, client.push(ping=30) as stream:
        with pytest.raises(UnreachableError):
            async for _ in stream:
                pass
        assert 60 <= stream._reader.stall_timeout <= 2000
