"""Lies: well framed content that is not that of the blob. And resets that reuse ids."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from tests.mails import text_mail
from tests.server import server_process
from tests.server.lies import DIFFERENCE, LOGIN_PAGE

from .jmap_client import BLOB, CORE, JmapClient, account_with_inbox, connected

USING = (CORE, BLOB)
LARGE = b"Subject: large\r\n\r\n" + b"0123456789" * 1000


async def blob_get(client: JmapClient, blob_id: str, **range_: int) -> dict[str, Any]:
    properties = ["data:asBase64", "size", "digest:sha-256"]
    answer = await client.call(
        "Blob/get", using=USING, ids=[blob_id], properties=properties, **range_
    )
    [blob] = answer["list"]
    return dict(blob)


async def in_ranges(client: JmapClient, blob_id: str) -> bytes:
    content = b""
    while True:
        blob = await blob_get(client, blob_id, offset=len(content), length=3000)
        content += base64.b64decode(blob["data:asBase64"])
        if len(content) == blob["size"]:
            return content


def expected(lie: str, raw: bytes, other: bytes) -> bytes:
    return {
        "html": LOGIN_PAGE,
        "empty": b"",
        "short": raw[:-DIFFERENCE],
        "long": raw + b"?" * DIFFERENCE,
        "other-mail": other,
    }[lie]


@pytest.mark.parametrize("lie", ["html", "empty", "short", "long", "other-mail"])
async def test_a_lie_is_well_framed_and_the_same_on_all_routes(lie: Any) -> None:
    async with connected(account_with_inbox(1)) as client:
        client.account.add_email(LARGE, ["Pinbox"], email_id="Mlarge")
        email = client.account.emails["Mlarge"]
        client.quirks.lie = lie
        wrong = expected(lie, LARGE, text_mail(0))
        response = await client.download(email.blob_id)
        assert response.content == wrong
        assert response.headers["content-length"] == str(len(wrong))
        is_html = response.headers["content-type"].startswith("text/html")
        assert is_html == (lie == "html")
        blob = await blob_get(client, email.blob_id)
        assert base64.b64decode(blob["data:asBase64"]) == wrong
        assert blob["size"] == len(wrong)
        assert "isTruncated" not in blob
        assert base64.b64decode(blob["digest:sha-256"]) == hashlib.sha256(LARGE).digest()
        assert await in_ranges(client, email.blob_id) == wrong
        got = await client.call("Email/get", ids=["Mlarge"], properties=["size"])
        assert got["list"][0]["size"] == len(LARGE)


@pytest.mark.parametrize("lie", ["html", "other-mail"])
async def test_a_lie_can_have_the_size_of_the_blob(lie: Any) -> None:
    async with connected(account_with_inbox(1), lie_equal_size=True, lie=lie) as client:
        blob_id = client.account.emails["M0"].blob_id
        wrong = (await client.download(blob_id)).content
        assert len(wrong) == len(text_mail(0))
        assert wrong != text_mail(0)
        assert wrong.startswith(b"<!doctype" if lie == "html" else b"From: other")
        client.account.add_email(b"x" * len(wrong), ["Pinbox"])
        if lie == "other-mail":
            assert (await client.download(blob_id)).content == b"x" * len(wrong)


async def test_lies_can_be_limited_to_routes_blobs_and_a_number() -> None:
    async with connected(account_with_inbox(2), lie="empty", lie_count=1) as client:
        first, second = (email.blob_id for email in client.account.emails.values())
        client.quirks.lie_blob_ids = [first]
        client.quirks.lie_routes = ["download"]
        assert (await blob_get(client, first))["size"] == len(text_mail(0))
        assert (await client.download(second)).content == text_mail(1)
        assert (await client.download(first)).content == b""
        assert (await client.download(first)).content == text_mail(0)
        client.quirks.lie_count = -1
        assert (await client.download(first)).content == b""
        client.quirks.lie_routes = ["blob-get"]
        assert (await client.download(first)).content == text_mail(0)
        assert (await blob_get(client, first))["size"] == 0


async def test_the_ranges_of_a_blob_are_one_lie() -> None:
    async with connected(account_with_inbox(0), lie="short", lie_count=1) as client:
        client.account.add_email(LARGE, ["Pinbox"], email_id="Mlarge")
        blob_id = client.account.emails["Mlarge"].blob_id
        assert await in_ranges(client, blob_id) == LARGE[:-DIFFERENCE]
        assert await in_ranges(client, blob_id) == LARGE


async def test_the_digests_are_those_that_the_server_lists() -> None:
    async with connected(account_with_inbox(1), digests=["sha"]) as client:
        session = (await client.http.get("/session")).json()
        [account] = session["accounts"].values()
        listed = account["accountCapabilities"][BLOB]["supportedDigestAlgorithms"]
        assert listed == ["sha"]
        blob_id = client.account.emails["M0"].blob_id

        async def digest(name: str) -> Any:
            return await client.call("Blob/get", using=USING, ids=[blob_id], properties=[name])

        sha = hashlib.sha1(text_mail(0), usedforsecurity=False).digest()
        assert base64.b64decode((await digest("digest:sha"))["list"][0]["digest:sha"]) == sha
        assert (await digest("digest:sha-256"))["type"] == "invalidArguments"
        assert client.server.counts.blob_reads == 0


def test_the_blob_ids_of_a_running_server_become_sha1s() -> None:
    with server_process("sample", sha1_blob_ids=True) as server:
        emails = server.control.dump().emails
        for email in emails[:20]:
            sha1 = hashlib.sha1(server.control.blob(email.blob_id), usedforsecurity=False)
            assert email.blob_id == "G" + sha1.hexdigest()
        inbox = emails[0].mailbox_ids[0]
        server.control.add_email(b"x", [inbox])
        sha1 = hashlib.sha1(b"x", usedforsecurity=False)
        assert server.control.dump().emails[-1].blob_id == "G" + sha1.hexdigest()
        server.control.destroy_emails([email.id for email in emails])


async def test_a_session_with_sha1_ids_looks_like_cyrus() -> None:
    async with connected(account_with_inbox(1), sha1_blob_ids=True) as client:
        session = (await client.http.get("/session")).json()
        assert any(name.startswith("https://cyrusimap.org/") for name in session["capabilities"])
        blob_id = client.account.emails["M0"].blob_id
        assert blob_id.startswith("G")
        assert (await client.download(blob_id)).content == text_mail(0)


def test_a_reset_reuses_ids_sizes_and_dates() -> None:
    days = [f"2024-03-0{day}T10:00:00Z" for day in (1, 2, 3)]
    old = [b"Subject: old %d\r\n\r\n%s\r\n" % (n, b"x" * 50) for n in range(3)]
    new = [b"Subject: new %d\r\n\r\nother\r\n" % n for n in range(3)]
    with server_process("empty") as server:
        control = server.control
        assert control.reset(old, received_at=days) == ["M1", "M2", "M3"]
        before = control.dump()
        assert [email.blob_id for email in before.emails] == ["B1", "B2", "B3"]
        assert [control.blob(email.blob_id) for email in before.emails] == old
        assert [email.received_at for email in before.emails] == days
        assert control.reset(new, equal_sizes=True) == ["M1", "M2", "M3"]
        after = control.dump()
        assert [(e.id, e.blob_id, e.size, e.received_at) for e in after.emails] == [
            (e.id, e.blob_id, e.size, e.received_at) for e in before.emails
        ]
        assert [control.blob(e.blob_id).rstrip() for e in after.emails] == [
            raw.rstrip() for raw in new
        ]
        assert after.mailboxes == before.mailboxes
        assert not set(after.states.values()) & set(before.states.values())
        # Ids continue from there.
        assert control.add_email(b"later", [after.mailboxes[0].id]) == "M4"
        assert control.dump().emails[-1].blob_id == "B4"
        server.restart_on_same_port()
        assert control.reset(old[:1]) == ["M1"]
        assert [email.received_at for email in control.dump().emails] == days[:1]


async def test_after_a_reset_no_old_state_is_known() -> None:
    async with connected(account_with_inbox(1)) as client:
        states = client.account.states
        client.account.reset([b"Subject: new\r\n\r\n"])
        for kind, state in states.items():
            answer = await client.call(f"{kind}/changes", sinceState=state)
            assert answer["type"] == "cannotCalculateChanges"
