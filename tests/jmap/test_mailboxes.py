"""Mailboxes: decoding, the whole list, and the list in parts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from jmapfs.errors import MethodError, ProtocolError
from jmapfs.jmap.types import MAILBOX_PROPERTIES, Mailbox
from tests.jmap.fake import Arguments, FakeServer, RefusedError, opened, with_limits


def insists_on_parts(server: FakeServer, most: int) -> None:
    plain = server.methods["Mailbox/get"]

    def mailbox_get(arguments: Arguments) -> Arguments:
        if arguments["ids"] is None or len(arguments["ids"]) > most:
            raise RefusedError("requestTooLarge")
        return plain(arguments)

    server.methods["Mailbox/get"] = mailbox_get


def with_mailboxes(count: int, **limits: Any) -> FakeServer:
    server = FakeServer(session=with_limits(**limits))
    server.mailboxes = [{"id": f"b{n}", "name": f"Box {n}"} for n in range(count)]
    return server


async def test_mailboxes_are_decoded() -> None:
    server = FakeServer()
    server.mailboxes = [
        {
            "id": "b1",
            "name": "Été/..",
            "parentId": "b0",
            "role": "archive",
            "sortOrder": 3,
            "totalEmails": 7,
            "unreadEmails": 2,
            "isSubscribed": True,
            "myRights": {"mayReadItems": False, "mayDelete": True},
            "somethingElse": [1, 2],
        },
        {"id": "b2", "name": None, "parentId": None, "role": None, "myRights": None},
    ]
    async with opened(server) as client:
        mailboxes, state = await client.mailboxes()
    assert state == "m1"
    assert mailboxes == [
        Mailbox(
            id="b1",
            name="Été/..",
            parent_id="b0",
            role="archive",
            sort_order=3,
            total_emails=7,
        ),
        Mailbox(id="b2"),
    ]
    [(name, arguments)] = server.calls
    assert name == "Mailbox/get"
    assert arguments == {"accountId": "A1", "ids": None, "properties": list(MAILBOX_PROPERTIES)}


@pytest.mark.parametrize("mailbox", [{}, {"id": ""}, {"id": 5}, None, 5, "b", []])
async def test_mailbox_without_a_usable_id_is_left_out(mailbox: Any) -> None:
    server = FakeServer()
    server.methods["Mailbox/get"] = lambda _: {"state": "m1", "list": [mailbox, {"id": "b"}]}
    async with opened(server) as client:
        assert await client.mailboxes() == ([Mailbox(id="b")], "m1")


@pytest.mark.parametrize("value", [None, 5, "x", "x" * 1025, [], {}, 1.5, 10**30, -(10**30)])
@pytest.mark.parametrize("name", ["name", "parentId", "role", "sortOrder", "totalEmails"])
async def test_odd_property_of_a_mailbox_gets_a_default(name: str, value: Any) -> None:
    plain = {"id": "b", "name": "Box", "parentId": "a", "role": "r", "sortOrder": 1}
    server = FakeServer()
    server.mailboxes = [{**plain, "totalEmails": 3, name: value}]
    server.methods["Mailbox/get"] = lambda _: {"state": "m1", "list": server.mailboxes}
    async with opened(server) as client:
        [[mailbox], _] = await client.mailboxes()
    found = msgspec.to_builtins(mailbox)
    ok = value == "x" and name in {"name", "parentId", "role"}
    ok |= value == 5 and name in {"sortOrder", "totalEmails"}
    assert found == {**plain, "totalEmails": 3, name: value if ok else None}


async def test_mailboxes_are_listed_in_parts() -> None:
    server = with_mailboxes(11, maxObjectsInGet=4)
    insists_on_parts(server, 2)
    async with opened(server) as client:
        mailboxes, state = await client.mailboxes()
    assert [mailbox.id for mailbox in mailboxes] == [f"b{n}" for n in range(11)]
    assert state == "m1"


async def test_other_method_errors_are_raised() -> None:
    server = FakeServer()

    def mailbox_get(_: Arguments) -> Arguments:
        raise RefusedError("accountNotFound")

    server.methods["Mailbox/get"] = mailbox_get
    async with opened(server) as client:
        with pytest.raises(MethodError, match="accountNotFound"):
            await client.mailboxes()


async def test_list_in_parts_that_changes_is_restarted() -> None:
    server = with_mailboxes(6, maxObjectsInGet=4)
    insists_on_parts(server, 4)
    plain = server.methods["Mailbox/query"]
    asked: list[int] = []

    def mailbox_query(arguments: Arguments) -> Arguments:
        asked.append(arguments["position"])
        if len(asked) == 2:
            del server.mailboxes[0]
        answer = plain(arguments)
        answer["queryState"] = "q1" if len(asked) < 2 else "q2"
        return answer

    server.methods["Mailbox/query"] = mailbox_query
    async with opened(server) as client:
        mailboxes, _ = await client.mailboxes()
    assert [mailbox.id for mailbox in mailboxes] == [f"b{n}" for n in range(1, 6)]
    assert asked == [0, 4, 5, 0, 4, 5]


async def test_list_in_parts_that_always_changes_is_an_error() -> None:
    server = with_mailboxes(6, maxObjectsInGet=4)
    insists_on_parts(server, 4)
    server.methods["Mailbox/query"] = lambda _: {"ids": ["b0"], "queryState": "q"}
    async with opened(server) as client:
        with pytest.raises(ProtocolError, match="changes each time"):
            await client.mailboxes()


async def test_mailbox_left_out_of_a_part_is_an_error() -> None:
    server = with_mailboxes(6, maxObjectsInGet=4)
    insists_on_parts(server, 4)
    plain = server.methods["Mailbox/get"]

    def mailbox_get(arguments: Arguments) -> Arguments:
        answer = plain(arguments)
        answer["list"] = [m for m in answer["list"] if m["id"] not in {"b1", "b5"}]
        answer["notFound"] = ["b5"]
        return answer

    server.methods["Mailbox/get"] = mailbox_get
    async with opened(server) as client:
        with pytest.raises(ProtocolError, match="without 1 of 4 mailboxes, the first being b1"):
            await client.mailboxes()
