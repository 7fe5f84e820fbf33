"""Mailbox/changes and Email/changes: one request for both, with the emails that changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from jmapfs.errors import MethodError, ProtocolError, RequestError
from jmapfs.jmap.changes import Changes
from jmapfs.jmap.series import ChainProgress
from tests.jmap.fake import LIMIT, Arguments, FakeServer, RefusedError, opened, with_limits


def with_changes(**limits: Any) -> FakeServer:
    """Return a server where two emails were created, one updated and one destroyed."""
    server = FakeServer(6, session=with_limits(**limits))
    server.change("Mailbox/changes", newState="m2", updated=["inbox"], updatedProperties=["name"])
    server.change(
        "Email/changes",
        newState="e2",
        hasMoreChanges=True,
        created=["M1", "M2"],
        updated=["M3", "M1", "gone"],
        destroyed=["M9", "M2"],
    )
    return server


MAILBOX_CHANGES = Changes("m2", False, (), ("inbox",), (), frozenset({"name"}))  # noqa: FBT003


async def test_both_changes_and_the_emails_are_one_request() -> None:
    server = with_changes()
    async with opened(server) as client:
        mailboxes, emails = await client.changes("m1", "e1")
    assert mailboxes == MAILBOX_CHANGES
    assert (emails.new_state, emails.has_more) == ("e2", True)
    assert [email.id for email in emails.emails] == ["M1", "M2", "M3"]
    assert emails.gone == ("M9", "gone")
    assert len(server.requests) == 1
    assert [name for name, _ in server.calls] == [
        "Mailbox/changes",
        "Email/changes",
        "Email/get",
        "Email/get",
    ]
    assert server.calls[0][1] == {"accountId": "A1", "sinceState": "m1", "maxChanges": 10_000}
    assert server.calls[1][1] == {"accountId": "A1", "sinceState": "e1", "maxChanges": 10_000}


@pytest.mark.parametrize(("most", "requests"), [(4, 1), (3, 2), (2, 2), (1, 3)])
async def test_requests_where_the_server_accepts_fewer_calls(most: int, requests: int) -> None:
    server = with_changes(maxCallsInRequest=most)
    async with opened(server) as client:
        mailboxes, emails = await client.changes("m1", "e1")
    assert mailboxes == MAILBOX_CHANGES
    assert [email.id for email in emails.emails] == ["M1", "M2", "M3"]
    assert emails.gone == ("M9", "gone")
    assert len(server.requests) == requests


@pytest.mark.parametrize(("most", "requests"), [(3, 1), (2, 2), (1, 2)])
async def test_email_changes(most: int, requests: int) -> None:
    server = with_changes(maxCallsInRequest=most)
    async with opened(server) as client:
        changes = await client.email_changes("e1")
    assert [email.id for email in changes.emails] == ["M1", "M2", "M3"]
    assert changes.gone == ("M9", "gone")
    assert len(server.requests) == requests


async def test_no_changes_are_one_request() -> None:
    server = FakeServer()
    server.change("Mailbox/changes", newState="m1")
    server.change("Email/changes", newState="e1")
    async with opened(server) as client:
        _, emails = await client.changes("m1", "e1")
    assert (emails.new_state, emails.has_more, emails.emails, emails.gone) == ("e1", False, (), ())
    assert len(server.requests) == 1


async def test_more_emails_than_the_server_returns_at_once() -> None:
    server = FakeServer(6, session=with_limits(maxObjectsInGet=2))
    server.change("Email/changes", newState="e2", created=list(server.emails), updated=["gone"])
    plain = server.methods["Email/get"]

    def email_get(arguments: Arguments) -> Arguments:
        if len(arguments["ids"]) > 2:
            raise RefusedError("requestTooLarge")
        return plain(arguments)

    server.methods["Email/get"] = email_get
    async with opened(server) as client:
        changes = await client.email_changes("e1")
    assert [email.id for email in changes.emails] == list(server.emails)
    assert changes.gone == ("gone",)
    assert len(server.requests) == 4


@pytest.mark.parametrize("limit", ["maxObjectsInGet", "maxSizeRequest"])
async def test_request_that_is_rejected_for_its_emails(limit: str) -> None:
    server = with_changes(maxObjectsInGet=2)

    def reject(request: httpx.Request) -> httpx.Response | None:
        if b"#ids" not in request.content:
            return None
        return httpx.Response(400, json={"type": LIMIT, "limit": limit})

    server.before = reject
    async with opened(server) as client:
        mailboxes, emails = await client.changes("m1", "e1")
    assert mailboxes == MAILBOX_CHANGES
    assert [email.id for email in emails.emails] == ["M1", "M2", "M3"]
    assert emails.gone == ("M9", "gone")
    assert len(server.requests) == 4


async def test_other_rejections_of_changes_are_errors() -> None:
    server = with_changes()
    async with opened(server) as client:
        server.before = lambda _: httpx.Response(400, json={"type": "urn:x"})
        with pytest.raises(RequestError):
            await client.changes("m1", "e1")
    assert len(server.requests) == 1


async def test_emails_that_the_server_leaves_out_are_requested_again() -> None:
    server = with_changes()
    plain = server.methods["Email/get"]
    server.methods["Email/get"] = lambda arguments: (
        {"state": "e2", "list": []} if len(server.requests) == 1 else plain(arguments)
    )
    async with opened(server) as client:
        changes = await client.email_changes("e1")
    assert [email.id for email in changes.emails] == ["M1", "M2", "M3"]
    assert server.calls[-1][1]["ids"] == ["M1", "M2", "M3", "gone"]


@pytest.mark.parametrize("method", ["Mailbox/changes", "Email/changes"])
async def test_changes_that_the_server_cannot_calculate(method: str) -> None:
    server = with_changes()

    def refuse(_: Arguments) -> Arguments:
        raise RefusedError("cannotCalculateChanges")

    server.methods[method] = refuse
    async with opened(server) as client:
        with pytest.raises(MethodError) as caught:
            await client.changes("m1", "e1")
    assert (caught.value.method, caught.value.kind) == (method, "cannotCalculateChanges")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (None, None),
        ([], frozenset()),
        (["totalEmails"], frozenset({"totalEmails"})),
        # An odd value says nothing: any property may have changed.
        ("totalEmails", None),
        (["totalEmails", ["name"]], None),
        ({"totalEmails": True}, None),
        (5, None),
    ],
)
async def test_mailbox_changes(sent: Any, expected: Any) -> None:
    server = FakeServer()
    server.change("Mailbox/changes", newState="m2", updated=["b1"], updatedProperties=sent)
    server.change("Email/changes", newState="e1")
    async with opened(server) as client:
        changes, _ = await client.changes("m1", "e1")
    assert changes == Changes(
        new_state="m2",
        has_more=False,
        created=(),
        updated=("b1",),
        destroyed=(),
        updated_properties=expected,
    )


async def test_changed_emails_may_be_bad() -> None:
    server = FakeServer(3)
    server.emails["M1"]["size"] = None
    server.change("Email/changes", newState="e2", created=["M1", "M2"], destroyed=["M1", "M9"])
    async with opened(server) as client:
        changes = await client.email_changes("e1")
    assert [email.id for email in changes.emails] == ["M2"]
    assert [bad.id for bad in changes.bad] == ["M1"]
    assert changes.gone == ("M9",)


@pytest.mark.parametrize("state", [None, "", 5])
async def test_changes_without_a_new_state(state: Any) -> None:
    server = FakeServer()
    server.change("Email/changes", newState=state)
    async with opened(server) as client:
        with pytest.raises(ProtocolError):
            await client.email_changes("e1")


async def test_a_destroyed_email_that_is_in_no_answer_is_gone() -> None:
    """It is among the updated emails too. Another one, which is only updated, is kept."""
    server = FakeServer(6)
    server.change("Mailbox/changes", newState="m1")
    server.change("Email/changes", newState="e2", updated=["M1", "M2", "M3"], destroyed=["M1"])
    plain = server.methods["Email/get"]

    def email_get(arguments: Arguments) -> Arguments:
        ids = [id_ for id_ in arguments["ids"] if id_ not in {"M1", "M2"}]
        return plain({**arguments, "ids": ids})

    server.methods["Email/get"] = email_get
    async with opened(server) as client:
        _, emails = await client.changes("m1", "e1")
    assert [email.id for email in emails.emails] == ["M3"]
    assert emails.gone == ("M1",)
    assert [(bad.id, bad.is_unanswered) for bad in emails.bad] == [("M2", True)]


def step(
    progress: ChainProgress, number: int, ids: Iterable[int], *, brings: bool | None = None
) -> bool:
    """Add a response with a new state that names emails."""
    found = None if brings is None else ["an email"] * brings
    return progress.add(f"s{number}", [f"M{one}" for one in ids], found)


def test_a_long_chain_of_other_emails_is_progress() -> None:
    progress = ChainProgress("s")
    assert all(
        step(progress, number, range(number * 10_000, (number + 1) * 10_000), brings=True)
        for number in range(40)
    )


@pytest.mark.parametrize(("pages", "size"), [(1, 0), (1, 1), (30, 1), (50, 10_000)])
@pytest.mark.parametrize("brings", [True, None])
def test_a_chain_that_names_the_same_emails_again_is_a_loop(
    pages: int, size: int, *, brings: bool | None
) -> None:
    """Each state is new."""
    progress = ChainProgress("s")
    for number in range(pages + 11):
        first = number % pages * size
        if not step(progress, number, range(first, first + size), brings=brings):
            return
    pytest.fail("this chain does not end")


def test_a_state_that_was_there_before_is_a_loop() -> None:
    progress = ChainProgress("s2")
    assert step(progress, 1, range(10), brings=True)
    assert not step(progress, 2, range(10, 20), brings=True)


@pytest.mark.parametrize(
    ("size", "brings", "most"), [(0, None, 10), (20, False, 30), (1, None, 1001), (999, None, 2003)]
)
def test_a_million_new_states_end(size: int, most: int, *, brings: bool | None) -> None:
    """Each response has a new state, and names nothing or invented ids."""
    progress = ChainProgress("s")
    ids = itertools.count()
    for number in range(1_000_000):
        if not step(progress, number, itertools.islice(ids, size), brings=brings):
            assert number < most
            return
    pytest.fail("this chain does not end")


def test_a_chain_that_only_deletes_known_mail_is_progress() -> None:
    progress = ChainProgress("s")
    assert all(step(progress, n, range(50 * n, 50 * n + 50), brings=True) for n in range(5000))
