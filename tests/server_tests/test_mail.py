"""The mail methods: their responses, the change log and their quirks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mails import text_mail
from tests.server import Account, NewEmail, PageChange

from .jmap_client import JmapClient, account_with_inbox, connected


async def changes(client: JmapClient, kind: str, since: str, **more: Any) -> tuple[set[str], ...]:
    """Call /changes until there are no more; return the created, updated and destroyed ids."""
    created, updated, destroyed = set[str](), set[str](), set[str]()
    while True:
        answer = await client.call(f"{kind}/changes", sinceState=since, **more)
        created |= set(answer["created"])
        updated |= set(answer["updated"])
        destroyed |= set(answer["destroyed"])
        since = answer["newState"]
        if not answer["hasMoreChanges"]:
            return created, updated, destroyed


async def test_mailbox_get_returns_names_parents_and_counts() -> None:
    async with connected(account_with_inbox(3)) as client:
        below = client.account.create_mailbox("a/b", "Pinbox", may_read_items=False)
        client.account.set_keywords("M1", ["$seen"])
        inbox, other = (await client.call("Mailbox/get"))["list"]
        assert (inbox["role"], inbox["totalEmails"], inbox["unreadEmails"]) == ("inbox", 3, 2)
        assert (inbox["totalThreads"], inbox["unreadThreads"]) == (3, 2)
        assert (other["id"], other["name"], other["parentId"]) == (below, "a/b", "Pinbox")
        assert other["myRights"]["mayReadItems"] is False
        partly = await client.call("Mailbox/get", ids=[below, "Px"], properties=["name"])
        assert partly["list"] == [{"id": below, "name": "a/b"}]
        assert partly["notFound"] == ["Px"]
        assert (await client.call("Mailbox/query", calculateTotal=True))["total"] == 2


async def test_mailbox_changes_distinguish_counts_from_properties() -> None:
    async with connected(account_with_inbox(1)) as client:
        state = client.account.states["Mailbox"]
        client.account.add_email(text_mail(1), ["Pinbox"])
        counted = await client.call("Mailbox/changes", sinceState=state)
        assert counted["updated"] == ["Pinbox"]
        assert "totalEmails" in counted["updatedProperties"]
        client.account.rename_mailbox("Pinbox", "In")
        renamed = await client.call("Mailbox/changes", sinceState=state)
        assert (renamed["updated"], renamed["updatedProperties"]) == (["Pinbox"], None)


async def test_email_get_returns_parsed_headers_and_threads() -> None:
    raw = (
        b"From: =?utf-8?Q?J=C3=BC?= <j@example.org>\nSubject: hi\nMessage-ID: <2@x>\n"
        b"References: <1@x>\n\n"
    )
    async with connected(account_with_inbox(1)) as client:
        new = client.account.add_email(raw, ["Pinbox"], ["$seen"], "2024-05-01T12:00:00+02:00")
        answer = await client.call("Email/get", ids=[new, "Mx"])
        (email,) = answer["list"]
        assert answer["notFound"] == ["Mx"]
        assert email["from"] == [{"name": "Jü", "email": "j@example.org"}]
        assert (email["subject"], email["size"]) == ("hi", len(raw))
        assert email["receivedAt"] == "2024-05-01T10:00:00Z"
        assert (email["mailboxIds"], email["keywords"]) == ({"Pinbox": True}, {"$seen": True})
        assert (email["references"], email["hasAttachment"]) == (["1@x"], False)
        reply = client.account.add_email(
            b"Subject: re\r\nIn-Reply-To:\r\n <2@x>\r\n\r\n", ["Pinbox"],
            received_at="2024-05-02T00:00:00Z",
        )  # fmt: skip
        (thread,) = (await client.call("Thread/get", ids=[email["threadId"]]))["list"]
        assert thread["emailIds"] == [new, reply]


async def test_query_has_pages_by_anchor_and_position() -> None:
    async with connected(account_with_inbox(10)) as client:
        oldest = [{"property": "receivedAt", "isAscending": True}]
        all_ids = (await client.call("Email/query", sort=oldest))["ids"]
        assert all_ids == [f"M{number}" for number in range(10)]
        found: list[str] = []
        anchor: str | None = None
        while True:
            where: dict[str, Any] = {} if anchor is None else {"anchor": anchor, "anchorOffset": 1}
            page = await client.call(
                "Email/query", sort=oldest, limit=4, filter={"inMailbox": "Pinbox"},
                calculateTotal=True, **where,
            )  # fmt: skip
            assert (page["total"], page["position"]) == (10, len(found))
            if not page["ids"]:
                break
            found += page["ids"]
            anchor = found[-1]
        assert found == all_ids
        assert (await client.call("Email/query", position=8))["ids"] == ["M1", "M0"]
        assert (await client.call("Email/query", position=-1))["ids"] == ["M0"]
        clamped_at_start = await client.call("Email/query", anchor="M9", anchorOffset=-3, limit=1)
        assert clamped_at_start["ids"] == ["M9"]


async def test_emails_of_one_date_have_a_stable_order() -> None:
    account = account_with_inbox(0)
    ids = account.add_emails(NewEmail(text_mail(n), ("Pinbox",)) for n in range(20))
    async with connected(account) as client:
        first = (await client.call("Email/query"))["ids"]
        assert sorted(first) == sorted(ids)
        assert first not in (ids, ids[::-1], sorted(ids))
        assert (await client.call("Email/query"))["ids"] == first


async def test_email_changes_are_net_changes() -> None:
    async with connected(account_with_inbox(5)) as client:
        start = client.account.states["Email"]
        other = client.account.create_mailbox("Other")
        new = client.account.add_email(text_mail(9), ["Pinbox"])
        client.account.copy_email("M0", other)
        client.account.move_email("M1", "Pinbox", other)
        client.account.set_keywords("M2", ["$flagged"])
        client.account.destroy_email("M3")
        gone = client.account.add_email(text_mail(8), ["Pinbox"])
        client.account.destroy_email(gone)
        net = ({new}, {"M0", "M1", "M2"}, {"M3"})
        assert await changes(client, "Email", start) == net
        one = await client.call("Email/changes", sinceState=start, maxChanges=1)
        assert (one["created"], one["hasMoreChanges"]) == ([new], True)
        created, updated, destroyed = await changes(client, "Email", start, maxChanges=1)
        assert (created - destroyed, updated, destroyed - created) == net
        assert client.account.emails["M0"].mailbox_ids == {"Pinbox", other}
        assert client.account.emails["M1"].mailbox_ids == {other}
        client.account.destroy_mailbox(other)
        assert "M1" not in client.account.emails
        assert client.account.emails["M0"].mailbox_ids == {"Pinbox"}
        now = client.account.states["Email"]
        client.account.forget_changes()
        assert await changes(client, "Email", now) == (set(), set(), set())
        assert (await client.call("Email/changes", sinceState=start))[
            "type"
        ] == "cannotCalculateChanges"


async def test_the_change_log_is_bounded() -> None:
    account = Account(log_limit=5)
    account.create_mailbox("Inbox", mailbox_id="Pinbox")
    old = account.states["Email"]
    async with connected(account) as client:
        account.add_emails(NewEmail(text_mail(n), ("Pinbox",)) for n in range(6))
        assert (await client.call("Email/changes", sinceState=old))[
            "type"
        ] == "cannotCalculateChanges"
        client.quirks.unknown_state_error = "invalidArguments"
        assert (await client.call("Email/changes", sinceState=old))["type"] == "invalidArguments"


async def test_migrations_keep_the_blobs() -> None:
    async with connected(account_with_inbox(4)) as client:
        blobs = {email.blob_id for email in client.account.emails.values()}
        start = client.account.states
        renamed = client.account.change_email_ids()
        created, updated, destroyed = await changes(client, "Email", start["Email"], maxChanges=3)
        assert (created, updated) == (set(renamed.values()), set())
        assert destroyed == {"M0", "M1", "M2", "M3"}
        assert {email.blob_id for email in client.account.emails.values()} == blobs
        boxes = client.account.change_mailbox_ids()
        assert await changes(client, "Mailbox", start["Mailbox"]) == (
            set(boxes.values()), set(), {"Pinbox"},
        )  # fmt: skip
        assert (await client.call("Email/query", filter={"inMailbox": boxes["Pinbox"]}))["ids"]


async def test_quirks_of_changes() -> None:
    async with connected(account_with_inbox(2)) as client:
        state = client.account.states["Email"]
        client.account.destroy_emails(["M0", "M1"])
        client.quirks.max_changes = 1
        assert (await client.call("Email/changes", sinceState=state))["hasMoreChanges"] is True
        client.quirks.has_more_lies = True
        lie = await client.call("Email/changes", sinceState=state)
        assert (lie["newState"], lie["hasMoreChanges"], lie["created"]) == (state, True, [])
        client.quirks.reset()
        client.quirks.cannot_calculate = True
        answer = await client.call("Mailbox/changes", sinceState=client.account.states["Mailbox"])
        assert answer["type"] == "cannotCalculateChanges"


async def test_quirks_of_queries() -> None:
    async with connected(account_with_inbox(6), query_limit=2, anchor_lost_at_pages=[2]) as client:
        clamped = await client.call("Email/query", limit=100)
        assert (clamped["ids"], clamped["limit"]) == (["M5", "M4"], 2)
        second: dict[str, Any] = {"anchor": "M4", "anchorOffset": 1}
        assert (await client.call("Email/query", **second))["type"] == "anchorNotFound"
        await client.call("Email/query")
        assert (await client.call("Email/query", **second))["ids"] == ["M3", "M2"]
        client.quirks.page_changes = [PageChange(2, "destroy_email", {"email_id": "M4"})]
        pages: list[int] = []
        client.server.page_hooks.append(lambda _account, page: pages.append(page))
        assert (await client.call("Email/query"))["ids"] == ["M5", "M4"]
        assert (await client.call("Email/query", **second))["type"] == "anchorNotFound"
        assert (pages, client.quirks.page_changes) == ([1, 2], [])


@pytest.mark.parametrize(
    ("quirks", "expected"),
    [
        ({"omit_ids": ["M0"]}, None),
        ({"not_found_ids": ["M0"]}, None),
        ({"null_subject": True}, {"subject": None}),
        ({"null_from": True}, {"from": None}),
        ({"size_offsets": {"*": -2}}, {"size": len(text_mail(0)) - 2}),
        ({"size_offsets": {"M0": 3}}, {"size": len(text_mail(0)) + 3}),
        ({"email_overrides": {"M0": {"receivedAt": "soon"}}}, {"receivedAt": "soon"}),
    ],
)
async def test_quirks_of_get(quirks: dict[str, Any], expected: dict[str, Any] | None) -> None:
    async with connected(account_with_inbox(1), **quirks) as client:
        answer = await client.call("Email/get", ids=["M0"])
        if expected is None:
            assert answer["list"] == []
            assert answer["notFound"] == quirks.get("not_found_ids", [])
        else:
            assert answer["list"][0].items() >= expected.items()


async def test_missing_properties() -> None:
    async with connected(account_with_inbox(1), missing_properties=["subject"]) as client:
        (email,) = (await client.call("Email/get", ids=None, properties=["subject", "size"]))[
            "list"
        ]
        assert set(email) == {"id", "size"}
