"""The mail methods: what they answer, what the change log says, and their quirks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server import Account, NewEmail, PageChange

from .speaking import Speaker, inbox_of, mail, speaking


async def changes(s: Speaker, kind: str, since: str, **more: Any) -> tuple[set[str], ...]:
    """Follow /changes to its end; return what was created, updated and destroyed."""
    created, updated, destroyed = set[str](), set[str](), set[str]()
    while True:
        answer = await s.call(f"{kind}/changes", sinceState=since, **more)
        created |= set(answer["created"])
        updated |= set(answer["updated"])
        destroyed |= set(answer["destroyed"])
        since = answer["newState"]
        if not answer["hasMoreChanges"]:
            return created, updated, destroyed


async def test_mailbox_get() -> None:
    async with speaking(inbox_of(3)) as s:
        below = s.account.create_mailbox("a/b", "Pinbox", may_read_items=False)
        s.account.set_keywords("M1", ["$seen"])
        inbox, other = (await s.call("Mailbox/get"))["list"]
        assert (inbox["role"], inbox["totalEmails"], inbox["unreadEmails"]) == ("inbox", 3, 2)
        assert (inbox["totalThreads"], inbox["unreadThreads"]) == (3, 2)
        assert (other["id"], other["name"], other["parentId"]) == (below, "a/b", "Pinbox")
        assert other["myRights"]["mayReadItems"] is False
        partly = await s.call("Mailbox/get", ids=[below, "Px"], properties=["name"])
        assert partly["list"] == [{"id": below, "name": "a/b"}]
        assert partly["notFound"] == ["Px"]
        assert (await s.call("Mailbox/query", calculateTotal=True))["total"] == 2


async def test_mailbox_changes_tell_counts_from_names() -> None:
    async with speaking(inbox_of(1)) as s:
        state = s.account.states["Mailbox"]
        s.account.add_email(mail(1), ["Pinbox"])
        counted = await s.call("Mailbox/changes", sinceState=state)
        assert counted["updated"] == ["Pinbox"]
        assert "totalEmails" in counted["updatedProperties"]
        s.account.rename_mailbox("Pinbox", "In")
        renamed = await s.call("Mailbox/changes", sinceState=state)
        assert (renamed["updated"], renamed["updatedProperties"]) == (["Pinbox"], None)


async def test_email_get() -> None:
    raw = (
        b"From: =?utf-8?Q?J=C3=BC?= <j@example.org>\nSubject: hi\nMessage-ID: <2@x>\n"
        b"References: <1@x>\n\n"
    )
    async with speaking(inbox_of(1)) as s:
        new = s.account.add_email(raw, ["Pinbox"], ["$seen"], "2024-05-01T12:00:00+02:00")
        answer = await s.call("Email/get", ids=[new, "Mx"])
        (email,) = answer["list"]
        assert answer["notFound"] == ["Mx"]
        assert email["from"] == [{"name": "Jü", "email": "j@example.org"}]
        assert (email["subject"], email["size"]) == ("hi", len(raw))
        assert email["receivedAt"] == "2024-05-01T10:00:00Z"
        assert (email["mailboxIds"], email["keywords"]) == ({"Pinbox": True}, {"$seen": True})
        assert (email["references"], email["hasAttachment"]) == (["1@x"], False)
        reply = s.account.add_email(
            b"Subject: re\r\nIn-Reply-To:\r\n <2@x>\r\n\r\n", ["Pinbox"],
            received_at="2024-05-02T00:00:00Z",
        )  # fmt: skip
        (thread,) = (await s.call("Thread/get", ids=[email["threadId"]]))["list"]
        assert thread["emailIds"] == [new, reply]


async def test_query_pages_by_anchor_and_position() -> None:
    async with speaking(inbox_of(10)) as s:
        oldest = [{"property": "receivedAt", "isAscending": True}]
        everything = (await s.call("Email/query", sort=oldest))["ids"]
        assert everything == [f"M{number}" for number in range(10)]
        found: list[str] = []
        anchor: str | None = None
        while True:
            where: dict[str, Any] = {} if anchor is None else {"anchor": anchor, "anchorOffset": 1}
            page = await s.call(
                "Email/query", sort=oldest, limit=4, filter={"inMailbox": "Pinbox"},
                calculateTotal=True, **where,
            )  # fmt: skip
            assert (page["total"], page["position"]) == (10, len(found))
            if not page["ids"]:
                break
            found += page["ids"]
            anchor = found[-1]
        assert found == everything
        assert (await s.call("Email/query", position=8))["ids"] == ["M1", "M0"]
        assert (await s.call("Email/query", position=-1))["ids"] == ["M0"]
        clipped = await s.call("Email/query", anchor="M9", anchorOffset=-3, limit=1)
        assert clipped["ids"] == ["M9"]


async def test_equal_dates_have_a_stable_order() -> None:
    account = inbox_of(0)
    ids = account.add_emails(NewEmail(mail(n), ("Pinbox",)) for n in range(20))
    async with speaking(account) as s:
        first = (await s.call("Email/query"))["ids"]
        assert sorted(first) == sorted(ids)
        assert first not in (ids, ids[::-1], sorted(ids))
        assert (await s.call("Email/query"))["ids"] == first


async def test_email_changes() -> None:
    async with speaking(inbox_of(5)) as s:
        start = s.account.states["Email"]
        other = s.account.create_mailbox("Other")
        new = s.account.add_email(mail(9), ["Pinbox"])
        s.account.copy_email("M0", other)
        s.account.move_email("M1", "Pinbox", other)
        s.account.set_keywords("M2", ["$flagged"])
        s.account.destroy_email("M3")
        gone = s.account.add_email(mail(8), ["Pinbox"])
        s.account.destroy_email(gone)
        net = ({new}, {"M0", "M1", "M2"}, {"M3"})
        assert await changes(s, "Email", start) == net
        one = await s.call("Email/changes", sinceState=start, maxChanges=1)
        assert (one["created"], one["hasMoreChanges"]) == ([new], True)
        created, updated, destroyed = await changes(s, "Email", start, maxChanges=1)
        assert (created - destroyed, updated, destroyed - created) == net
        assert s.account.emails["M0"].mailbox_ids == {"Pinbox", other}
        assert s.account.emails["M1"].mailbox_ids == {other}
        s.account.destroy_mailbox(other)
        assert "M1" not in s.account.emails
        assert s.account.emails["M0"].mailbox_ids == {"Pinbox"}
        now = s.account.states["Email"]
        s.account.forget_changes()
        assert await changes(s, "Email", now) == (set(), set(), set())
        assert (await s.call("Email/changes", sinceState=start))["type"] == "cannotCalculateChanges"


async def test_the_log_is_bounded() -> None:
    account = Account(log_limit=5)
    account.create_mailbox("Inbox", mailbox_id="Pinbox")
    old = account.states["Email"]
    async with speaking(account) as s:
        account.add_emails(NewEmail(mail(n), ("Pinbox",)) for n in range(6))
        assert (await s.call("Email/changes", sinceState=old))["type"] == "cannotCalculateChanges"
        s.quirks.unknown_state_error = "invalidArguments"
        assert (await s.call("Email/changes", sinceState=old))["type"] == "invalidArguments"


async def test_migrations_keep_the_blobs() -> None:
    async with speaking(inbox_of(4)) as s:
        blobs = {email.blob_id for email in s.account.emails.values()}
        start = s.account.states
        renamed = s.account.change_email_ids()
        created, updated, destroyed = await changes(s, "Email", start["Email"], maxChanges=3)
        assert (created, updated) == (set(renamed.values()), set())
        assert destroyed == {"M0", "M1", "M2", "M3"}
        assert {email.blob_id for email in s.account.emails.values()} == blobs
        boxes = s.account.change_mailbox_ids()
        assert await changes(s, "Mailbox", start["Mailbox"]) == (
            set(boxes.values()), set(), {"Pinbox"},
        )  # fmt: skip
        assert (await s.call("Email/query", filter={"inMailbox": boxes["Pinbox"]}))["ids"]


async def test_quirks_of_changes() -> None:
    async with speaking(inbox_of(2)) as s:
        state = s.account.states["Email"]
        s.account.destroy_emails(["M0", "M1"])
        s.quirks.max_changes = 1
        assert (await s.call("Email/changes", sinceState=state))["hasMoreChanges"] is True
        s.quirks.has_more_lies = True
        lie = await s.call("Email/changes", sinceState=state)
        assert (lie["newState"], lie["hasMoreChanges"], lie["created"]) == (state, True, [])
        s.quirks.reset()
        s.quirks.cannot_calculate = True
        answer = await s.call("Mailbox/changes", sinceState=s.account.states["Mailbox"])
        assert answer["type"] == "cannotCalculateChanges"


async def test_quirks_of_queries() -> None:
    async with speaking(inbox_of(6), query_limit=2, anchor_lost_at_pages=[2]) as s:
        clamped = await s.call("Email/query", limit=100)
        assert (clamped["ids"], clamped["limit"]) == (["M5", "M4"], 2)
        second: dict[str, Any] = {"anchor": "M4", "anchorOffset": 1}
        assert (await s.call("Email/query", **second))["type"] == "anchorNotFound"
        await s.call("Email/query")
        assert (await s.call("Email/query", **second))["ids"] == ["M3", "M2"]
        s.quirks.page_changes = [PageChange(2, "destroy_email", {"email_id": "M4"})]
        pages: list[int] = []
        s.server.page_hooks.append(lambda _account, page: pages.append(page))
        assert (await s.call("Email/query"))["ids"] == ["M5", "M4"]
        assert (await s.call("Email/query", **second))["type"] == "anchorNotFound"
        assert (pages, s.quirks.page_changes) == ([1, 2], [])


@pytest.mark.parametrize(
    ("quirks", "expected"),
    [
        ({"omit_ids": ["M0"]}, None),
        ({"not_found_ids": ["M0"]}, None),
        ({"null_subject": True}, {"subject": None}),
        ({"null_from": True}, {"from": None}),
        ({"size_offsets": {"*": -2}}, {"size": len(mail(0)) - 2}),
        ({"size_offsets": {"M0": 3}}, {"size": len(mail(0)) + 3}),
        ({"email_overrides": {"M0": {"receivedAt": "soon"}}}, {"receivedAt": "soon"}),
    ],
)
async def test_quirks_of_get(quirks: dict[str, Any], expected: dict[str, Any] | None) -> None:
    async with speaking(inbox_of(1), **quirks) as s:
        answer = await s.call("Email/get", ids=["M0"])
        if expected is None:
            assert answer["list"] == []
            assert answer["notFound"] == quirks.get("not_found_ids", [])
        else:
            assert answer["list"][0].items() >= expected.items()


async def test_missing_properties() -> None:
    async with speaking(inbox_of(1), missing_properties=["subject"]) as s:
        (email,) = (await s.call("Email/get", ids=None, properties=["subject", "size"]))["list"]
        assert set(email) == {"id", "size"}
