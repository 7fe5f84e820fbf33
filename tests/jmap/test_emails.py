"""Emails: decoding, pages, chunks, and that every id is accounted for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest
from trio.testing import MockClock

from jmapfs.errors import MethodError, RequestError
from jmapfs.jmap.emails import EmailsFound, EmailValues, IdPage
from jmapfs.jmap.types import Address, BadEmail, Email, Keywords, MailboxIds
from tests.jmap.fake import (
    LIMIT,
    Arguments,
    FakeServer,
    RefusedError,
    email_document,
    opened,
    with_limits,
)


def too_many_above(server: FakeServer, most: int) -> None:
    """Make Email/get reject more than `most` ids, whatever the session says."""
    plain = server.methods["Email/get"]

    def email_get(arguments: Arguments) -> Arguments:
        if len(arguments["ids"]) > most:
            raise RefusedError("requestTooLarge")
        return plain(arguments)

    server.methods["Email/get"] = email_get


def forgetful(server: FakeServer, forgotten: set[str], *, times: int) -> None:
    """Make Email/get leave these ids out of both its lists, `times` times."""
    plain = server.methods["Email/get"]
    left = [times]

    def email_get(arguments: Arguments) -> Arguments:
        answer = plain(arguments)
        if arguments["ids"] and left[0]:
            left[0] -= 1
            answer["list"] = [e for e in answer["list"] if e["id"] not in forgotten]
        return answer

    server.methods["Email/get"] = email_get


async def one(**changes: Any) -> Email:
    server = FakeServer()
    server.emails = {"M1": email_document(1, **changes)}
    async with opened(server) as client:
        [email], _, _ = await client.emails(["M1"])
        return email


async def test_email_is_decoded() -> None:
    assert await one() == Email(
        id="M1",
        blob_id="B1",
        thread_id="T1",
        mailbox_ids=MailboxIds({"inbox"}),
        keywords=Keywords({"$seen"}),
        size=101,
        received_at=datetime(2024, 3, 1, 0, 1, tzinfo=UTC),
        subject="Mail 1",
        from_=(Address("Bob", "bob@example.org"),),
    )


async def test_null_properties_are_accepted() -> None:
    email = await one(subject=None, threadId=None, keywords=None, **{"from": None})
    assert (email.subject, email.from_, email.keywords) == (None, None, frozenset())
    assert (await one(**{"from": [{"name": None}, {}]})).from_ == (Address(), Address())


async def test_received_at_is_converted_to_utc() -> None:
    email = await one(receivedAt="2024-03-01T01:30:00.250+02:00")
    assert email.received_at == datetime(2024, 2, 29, 23, 30, 0, 250_000, tzinfo=UTC)
    assert email.received_at.tzinfo is UTC


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": 1274.0}, {"size": 1274}),
        ({"receivedAt": "32547-12-05T15:30:08Z"}, {"received_at": EPOCH}),
        ({"receivedAt": "0000-01-01T00:00:00Z"}, {"received_at": EPOCH}),
        ({"receivedAt": "0001-01-01T00:00:00+14:00"}, {"received_at": EPOCH}),
        ({"receivedAt": "9999-12-31T23:59:59-01:00"}, {"received_at": EPOCH}),
        ({"receivedAt": "2024-03-01T01:30:00"}, {"received_at": EPOCH}),
        ({"receivedAt": "yesterday"}, {"received_at": EPOCH}),
        ({"receivedAt": ""}, {"received_at": EPOCH}),
        ({"mailboxIds": None}, {"mailbox_ids": MailboxIds()}),
        ({"mailboxIds": ["inbox"]}, {"mailbox_ids": MailboxIds()}),
        ({"mailboxIds": {"": True, "inbox": True}}, {"mailbox_ids": MailboxIds({"inbox"})}),
        ({"mailboxIds": {"a": 1, "b": True, "c": False}}, {"mailbox_ids": MailboxIds({"b"})}),
        ({"keywords": {"$seen": None, "$draft": True}}, {"keywords": Keywords({"$draft"})}),
        ({"keywords": 5}, {"keywords": Keywords()}),
        ({"threadId": 5}, {"thread_id": None}),
        ({"subject": 5}, {"subject": None}),
        ({"from": "bob@example.org"}, {"from_": None}),
        ({"from": [5, {"name": 5, "email": "b@c"}]}, {"from_": (Address(None, "b@c"),)}),
    ],
)
async def test_odd_property_gets_a_default(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    email = await one(**changes)
    assert email == msgspec.structs.replace(await one(), **expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"blobId": None}, "the server sends no blobId"),
        ({"blobId": ""}, 'blobId is not usable: ""'),
        ({"size": -1}, "size is not usable: -1"),
        ({"size": 2**53}, "size is not usable: 9007199254740992"),
        ({"size": float(2**60)}, "size is not usable: 1.152921504606847e+18"),
        ({"size": 10**400}, "size is not usable: 100000000000000000000000000000000000000…"),
        ({"size": "10"}, 'size is not usable: "10"'),
        ({"size": 1.5}, "size is not usable: 1.5"),
        ({"receivedAt": None}, "the server sends no receivedAt"),
        ({"receivedAt": 0}, "receivedAt is not usable: 0"),
        ({"receivedAt": ["2024-03-01T01:30:00Z"]}, "receivedAt is not usable: "),
    ],
)
async def test_email_without_an_essential_property_is_bad(
    changes: dict[str, Any], reason: str
) -> None:
    server = FakeServer(3)
    server.emails["M1"].update(changes)
    async with opened(server) as client:
        emails, not_found, [bad] = await client.emails(server.emails)
    assert [email.id for email in emails] == ["M0", "M2"]
    assert not_found == []
    assert (bad.id, bad.mailbox_ids) == ("M1", MailboxIds({"inbox"}))
    assert bad.reason.startswith(reason)
    assert len(bad.reason) < 80


@pytest.mark.parametrize("item", [{"id": ""}, {"id": "x" * 256}, {"id": 1}, {}, None, 5, "M1", []])
async def test_email_with_an_unusable_id_is_one_that_the_server_does_not_return(item: Any) -> None:
    server = FakeServer(3)
    server.emails["M1"] = item
    server.methods["Email/get"] = lambda arguments: {
        "state": "e1",
        "list": [server.emails[id_] for id_ in arguments["ids"]],
        "notFound": None,
    }
    async with opened(server) as client:
        emails, not_found, bad = await client.emails(server.emails)
    assert [email.id for email in emails] == ["M0", "M2"]
    assert not_found == []
    assert bad == [
        BadEmail(
            id="M1",
            reason="the server neither returns it nor reports it as not found",
            is_unanswered=True,
        )
    ]


@pytest.mark.parametrize("kind", ["serverFail", "serverUnavailable"])
@pytest.mark.parametrize("failures", [1, 2, 3])
async def test_a_temporary_failure_is_retried(
    kind: str, failures: int, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    server = FakeServer(3)
    plain = server.methods["Email/get"]
    asked: list[Arguments] = []

    def email_get(arguments: Arguments) -> Arguments:
        asked.append(arguments)
        if len(asked) <= failures:
            raise RefusedError(kind)
        return plain(arguments)

    server.methods["Email/get"] = email_get
    async with opened(server) as client:
        if failures == 3:
            with pytest.raises(MethodError, match=kind):
                await client.emails(server.emails)
        else:
            found = await client.emails(server.emails)
            assert [email.id for email in found.emails] == list(server.emails)
    assert len(asked) == min(failures + 1, 3)


@pytest.mark.parametrize("length", [1, 3])
async def test_shortened_responses_are_completed(length: int) -> None:
    server = FakeServer(10)
    plain = server.methods["Email/get"]

    def email_get(arguments: Arguments) -> Arguments:
        answer = plain(arguments)
        return {**answer, "list": answer["list"][:length]}

    server.methods["Email/get"] = email_get
    async with opened(server) as client:
        emails, not_found, bad = await client.emails(server.emails)
    assert [email.id for email in emails] == list(server.emails)
    assert (not_found, bad) == ([], [])


async def test_text_that_is_not_unicode_is_replaced() -> None:
    server = FakeServer(2)
    call = ["Email/get", {"accountId": "A1", "ids": ["M0", "M1"]}, "0"]
    body = server.respond({"methodCalls": [call]})
    content = (
        json.dumps(body)
        .encode()
        .replace(b"Mail 0", rb"a\ud83d\ude00b\ud800c\\ud800\udc00\ud83d")
        .replace(b"Mail 1", b"d\xffe\\u0000\xed\xa0\x80f")
    )
    server.before = lambda request: (
        httpx.Response(200, content=content) if request.method == "POST" else None
    )
    async with opened(server) as client:
        emails, _, bad = await client.emails(["M0", "M1"])
    assert [email.subject for email in emails] == [
        "a\U0001f600b\ufffdc\\ud800\ufffd\ufffd",
        "d\ufffde\0\ufffd\ufffd\ufffdf",
    ]
    assert bad == []


async def test_email_state_requests_no_email() -> None:
    server = FakeServer(3)
    async with opened(server) as client:
        assert await client.email_state() == "e1"
    [(name, arguments)] = server.calls
    assert (name, arguments["ids"]) == ("Email/get", [])


# --- Ids and counts


async def test_ids_are_requested_without_a_sort_order() -> None:
    server = FakeServer(10)
    async with opened(server) as client:
        first = await client.query_ids(0, count=True)
        second = await client.query_ids(7)
    assert first == IdPage(tuple(server.emails), 10)
    assert second == IdPage(("M7", "M8", "M9"), None)
    (_, query), (_, next_query) = server.calls
    assert query == {"accountId": "A1", "position": 0, "calculateTotal": True, "limit": 10_000}
    assert next_query == {"accountId": "A1", "position": 7, "limit": 10_000}


@pytest.mark.parametrize("error", ["invalidArguments", "requestTooLarge"])
@pytest.mark.parametrize("most", [1000, 999, 50, 0])
async def test_a_smaller_limit_is_requested_if_one_is_refused(error: str, most: int) -> None:
    server = FakeServer(30)
    plain = server.methods["Email/query"]

    def email_query(arguments: Arguments) -> Arguments:
        if arguments.get("limit", 0) > most:
            raise RefusedError(error)
        return plain({"limit": 25, **arguments})

    server.methods["Email/query"] = email_query
    async with opened(server) as client:
        assert len((await client.query_ids(0)).ids) == (30 if most > 50 else 25)
        before = len(server.calls)
        await client.query_ids(3)
    # The limit that was accepted is kept.
    assert len(server.calls) == before + 1


async def test_the_last_refusal_is_an_error() -> None:
    server = FakeServer(3)

    def refuse(_: Arguments) -> Arguments:
        raise RefusedError("invalidArguments")

    server.methods["Email/query"] = refuse
    async with opened(server) as client:
        with pytest.raises(MethodError, match="invalidArguments"):
            await client.query_ids(0)


@pytest.mark.parametrize("most_calls", [16, 1])
async def test_counts(most_calls: int) -> None:
    server = FakeServer(5, session=with_limits(maxCallsInRequest=most_calls))
    server.mailboxes[0]["totalEmails"] = 3
    async with opened(server) as client:
        counts = await client.counts()
    assert (counts.email_state, counts.total) == ("e1", 5)
    assert counts.mailboxes[server.mailboxes[0]["id"]] == 3
    assert len(server.requests) == (1 if most_calls > 1 else 3)
    assert server.calls[-1][0] == "Email/get"  # the state is the last that is requested


async def test_counts_of_a_server_that_counts_nothing() -> None:
    server = FakeServer(5)

    def refuse(_: Arguments) -> Arguments:
        raise RefusedError("unsupportedFilter")

    server.methods["Email/query"] = server.methods["Mailbox/get"] = refuse
    async with opened(server) as client:
        with pytest.raises(MethodError, match="Email/query with unsupportedFilter"):
            await client.counts()


async def test_changed_ids_of_all_parts() -> None:
    server = FakeServer()
    parts = {
        "s0": {"newState": "s1", "hasMoreChanges": True, "created": ["M1"], "updated": ["M2"]},
        "s1": {"newState": "s2", "hasMoreChanges": False, "created": ["M3"], "updated": ["M1"]},
    }
    server.methods["Email/changes"] = lambda arguments: dict(parts[arguments["sinceState"]])
    async with opened(server) as client:
        assert await client.changed_ids("s0") == {"M1", "M2", "M3"}


# --- By id


async def test_emails_left_out_once_are_requested_again() -> None:
    server = FakeServer(4)
    forgetful(server, {"M1", "M3"}, times=1)
    async with opened(server) as client:
        emails = (await client.emails(server.emails)).emails
    assert [email.id for email in emails] == ["M0", "M1", "M2", "M3"]
    assert server.calls[-1][1]["ids"] == ["M1", "M3"]


async def test_emails_left_out_twice_are_bad() -> None:
    server = FakeServer(4)
    forgetful(server, {"M1", "M3"}, times=9)
    async with opened(server) as client:
        found = await client.emails(server.emails)
    assert [email.id for email in found.emails] == ["M0", "M2"]
    assert [email.id for email in found.bad] == ["M1", "M3"]


async def test_duplicate_ids_and_unrequested_emails_are_ignored() -> None:
    server = FakeServer(4)
    server.methods["Email/get"] = lambda _: {
        "state": "e1",
        "list": [email_document(n) for n in (1, 0, 0, 7)],
        "notFound": ["M9", "M1"],
    }
    async with opened(server) as client:
        found = await client.emails(["M0", "M1", "M0"])
    assert [email.id for email in found.emails] == ["M0", "M1"]
    assert found.not_found == []


async def test_emails_are_requested_in_chunks() -> None:
    server = FakeServer(10, session=with_limits(maxObjectsInGet=4))
    wanted = ["M9", "M0", "gone", *(f"M{n}" for n in range(9)), "M9"]
    async with opened(server) as client:
        emails, not_found, _ = await client.emails(wanted)
    assert [email.id for email in emails] == ["M9", *(f"M{n}" for n in range(9))]
    assert not_found == ["gone"]
    assert [len(a["ids"]) for _, a in server.calls] == [4, 4, 3]


async def test_no_ids_send_no_request() -> None:
    server = FakeServer()
    async with opened(server) as client:
        assert await client.emails([]) == EmailsFound([], [], [])
    assert not server.requests


async def test_too_many_emails_are_halved() -> None:
    server = FakeServer(10)
    too_many_above(server, 3)
    async with opened(server) as client:
        emails, _, _ = await client.emails(server.emails)
        assert len(emails) == 10
        assert [len(a["ids"]) for _, a in server.calls] == [10, 5, 2, 2, 2, 2, 2]
        server.requests.clear()
        await client.emails(server.emails)
    assert {len(a["ids"]) for _, a in server.calls} == {2}


@pytest.mark.parametrize(
    "refused",
    [
        httpx.Response(413),
        httpx.Response(400, json={"type": LIMIT, "limit": "maxSizeRequest"}),
        httpx.Response(400, json={"type": LIMIT, "limit": "maxObjectsInGet"}),
    ],
)
async def test_too_large_request_is_halved(refused: httpx.Response) -> None:
    server = FakeServer(10)
    async with opened(server) as client:
        server.before = lambda request: refused if len(request.content) > 300 else None
        emails, _, _ = await client.emails(server.emails)
    assert len(emails) == 10


async def test_request_above_the_maximum_size_is_halved_before_sending() -> None:
    server = FakeServer(session=with_limits(maxSizeRequest=1000))
    server.emails = {f"{n:0200}": email_document(0, id=f"{n:0200}") for n in range(10)}
    async with opened(server) as client:
        emails, _, _ = await client.emails(server.emails)
    assert len(emails) == 10
    assert all(len(request.content) <= 1000 for request in server.requests)


async def test_request_for_one_email_that_is_too_large_is_an_error() -> None:
    server = FakeServer(1, session=with_limits(maxSizeRequest=10))
    async with opened(server) as client:
        with pytest.raises(RequestError, match=r"more than mail\.example\.org accepts"):
            await client.emails(["M0"])


async def test_immutable_values_are_requested_and_nothing_else() -> None:
    server = FakeServer(3)
    server.emails["M1"]["receivedAt"] = "2024-03-01T01:00:01.75+01:00"
    async with opened(server) as client:
        values = await client.email_values(["M1", "M9", "M0", "M1"])
    assert values == {
        "M0": EmailValues("B0", 100, 1709251200),
        "M1": EmailValues("B1", 101, 1709251201),
    }
    [(name, arguments)] = server.calls
    assert name == "Email/get"
    assert arguments["ids"] == ["M1", "M9", "M0"]
    assert arguments["properties"] == ["id", "blobId", "size", "receivedAt", "messageId"]


@pytest.mark.parametrize(
    ("stated", "expected"),
    [(None, ()), (["a@b", 5, "c"], ("a@b", "c")), ("a@b", ()), ([], ()), ({"a": 1}, ())],
)
async def test_message_ids_of_any_type_are_accepted(
    stated: object, expected: tuple[str, ...]
) -> None:
    server = FakeServer(1)
    server.emails["M0"]["messageId"] = stated
    async with opened(server) as client:
        assert (await client.email_values(["M0"]))["M0"].message_ids == expected


async def test_immutable_values_of_a_server_that_rejects_message_ids() -> None:
    server = FakeServer(2)
    answer = server.methods["Email/get"]

    def rejecting(arguments: Arguments) -> Arguments:
        if "messageId" in arguments["properties"]:
            raise RefusedError("invalidArguments")
        return answer(arguments)

    server.methods["Email/get"] = rejecting
    async with opened(server) as client:
        for email_id in ("M0", "M1"):
            values = await client.email_values([email_id])
            assert values[email_id].message_ids == ()
    assert len(server.calls) == 3


async def test_immutable_values_of_bad_emails_are_left_out() -> None:
    server = FakeServer(3)
    server.emails["M0"]["size"] = None
    server.emails["M1"]["receivedAt"] = "32547-12-05T15:30:08Z"
    forgetful(server, {"M2"}, times=9)
    async with opened(server) as client:
        values = await client.email_values(server.emails)
    assert values == {"M1": EmailValues("B1", 101, 0)}
