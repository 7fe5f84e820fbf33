"""Downloads and Blob/get, and their faults."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import httpx
import pytest
import trio

from tests.mails import text_mail
from tests.server import Account

from .jmap_client import BLOB, CORE, account_with_inbox, connected

USING = (CORE, BLOB)
PROPERTIES = ["data:asBase64", "size"]


async def test_download_returns_the_bytes() -> None:
    async with connected(account_with_inbox(2)) as client:
        blob_id = client.account.emails["M1"].blob_id
        response = await client.download(blob_id)
        assert response.content == text_mail(1)
        assert response.headers["content-type"] == "a/b"
        assert client.server.counts.blobs == {blob_id: 1}
        assert client.server.counts.bytes_sent == len(text_mail(1))
        client.account.destroy_email("M1")
        assert (await client.download(blob_id)).status_code == 404


async def test_blob_ids_can_be_those_of_cyrus() -> None:
    account = Account(blob_scheme="cyrus")
    inbox = account.create_mailbox("Inbox")
    email = account.emails[account.add_email(b"x", [inbox])]
    assert email.blob_id == "G" + hashlib.sha1(b"x", usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("fault", ["short", "cut"])
async def test_interrupted_downloads(fault: Any) -> None:
    async with connected(account_with_inbox(1)) as client:
        blob_id = client.account.emails["M0"].blob_id
        client.quirks.download_fault = fault
        client.quirks.download_fault_count = 1
        with pytest.raises(httpx.RemoteProtocolError):
            await client.download(blob_id)
        assert (await client.download(blob_id)).content == text_mail(0)


async def test_faults_of_downloads() -> None:
    async with connected(account_with_inbox(2)) as client:
        blob_id, other = (email.blob_id for email in client.account.emails.values())
        client.quirks.fault_blob_ids = [blob_id]
        client.quirks.download_fault = "wrong-bytes"
        wrong = (await client.download(blob_id)).content
        assert len(wrong) == len(text_mail(0))
        assert wrong != text_mail(0)
        assert (await client.download(other)).content == text_mail(1)
        client.quirks.download_fault = "wrong-length"
        assert len((await client.download(blob_id)).content) == len(text_mail(0)) + 7
        client.quirks.wrong_length_by = -9
        assert (await client.download(blob_id)).content == text_mail(0)[:-9]
        client.quirks.download_fault = "not-found"
        assert (await client.download(blob_id)).status_code == 404
        client.quirks.download_fault = "stall"
        with pytest.raises(httpx.ReadTimeout):
            await client.http.get(f"/jmap/download/{client.account.id}/{blob_id}/x", timeout=0.2)
        client.quirks.reset()
        client.quirks.download_delay = 0.1
        start = trio.current_time()
        await client.download(blob_id)
        assert trio.current_time() - start >= 0.1


async def test_blob_get_returns_data_sizes_and_digests() -> None:
    account = account_with_inbox(0)
    fox, binary = b"The quick brown fox jumped over the lazy dog", b"\xff\xfe"
    for raw in (fox, binary):
        account.add_email(raw, ["Pinbox"])
    fox_id, binary_id = (email.blob_id for email in account.emails.values())
    async with connected(account) as client:
        whole = await client.call("Blob/get", using=USING, ids=[fox_id, binary_id, "Bx"])
        assert whole["notFound"] == ["Bx"]
        assert whole["list"] == [
            {"id": fox_id, "data:asText": fox.decode(), "size": len(fox)},
            {"id": binary_id, "data:asBase64": "//4=", "size": 2, "isEncodingProblem": True},
        ]
        # The example of RFC 9404 §4.2.1.
        properties = ["data:asText", "digest:sha", "size"]
        (part,) = (
            await client.call(
                "Blob/get", using=USING, ids=[fox_id], properties=properties, offset=4, length=9
            )
        )["list"]
        assert part == {
            "id": fox_id, "data:asText": "quick bro", "size": len(fox),
            "digest:sha": "QiRAPtfyX8K6tm1iOAtZ87Xj3Ww=",
        }  # fmt: skip
        (beyond,) = (
            await client.call(
                "Blob/get", using=USING, ids=[binary_id], properties=["data:asText"], offset=0,
                length=9,
            )
        )["list"]  # fmt: skip
        assert beyond["isTruncated"] is beyond["isEncodingProblem"] is True
        assert beyond["data:asText"] is None
        assert client.server.counts.blobs[fox_id] == 2


async def test_faults_of_blob_get_can_affect_one_blob() -> None:
    async with connected(account_with_inbox(3)) as client:
        ids = [email.blob_id for email in client.account.emails.values()]
        client.quirks.fault_blob_ids = ids[:1]
        client.quirks.blob_fault = "truncated"
        answer = await client.call("Blob/get", using=USING, ids=ids, properties=PROPERTIES)
        contents = [base64.b64decode(blob["data:asBase64"]) for blob in answer["list"]]
        assert contents == [text_mail(0)[: len(text_mail(0)) // 2], text_mail(1), text_mail(2)]
        assert [blob.get("isTruncated") for blob in answer["list"]] == [True, None, None]


async def test_responses_of_blob_get_are_limited() -> None:
    async with connected(account_with_inbox(2)) as client:
        ids = [email.blob_id for email in client.account.emails.values()]
        client.quirks.max_blob_bytes = len(text_mail(0)) + len(text_mail(1)) - 1
        refused = await client.call("Blob/get", using=USING, ids=ids, properties=PROPERTIES)
        assert refused["type"] == "requestTooLarge"
        assert client.server.counts.blob_reads == 0
        for blob_id in ids:
            answer = await client.call(
                "Blob/get", using=USING, ids=[blob_id], properties=PROPERTIES
            )
            assert answer["list"][0]["id"] == blob_id


async def test_faults_of_blob_get() -> None:
    async with connected(account_with_inbox(1)) as client:
        blob_id = client.account.emails["M0"].blob_id

        async def get(fault: Any) -> Any:
            client.quirks.blob_fault = fault
            answer = await client.call(
                "Blob/get", using=USING, ids=[blob_id], properties=PROPERTIES
            )
            return answer["list"][0] if answer["list"] else answer["notFound"]

        assert base64.b64decode((await get(None))["data:asBase64"]) == text_mail(0)
        wrong = base64.b64decode((await get("wrong-bytes"))["data:asBase64"])
        assert wrong != text_mail(0)
        assert len(wrong) == len(text_mail(0))
        assert len(base64.b64decode((await get("wrong-length"))["data:asBase64"])) > len(wrong)
        assert (await get("truncated"))["isTruncated"] is True
        assert (await get("null"))["data:asBase64"] is None
        assert (await get("not-base64"))["data:asBase64"].startswith("*")
        assert (await get("wrong-size"))["size"] == len(text_mail(0)) + 7
        assert await get("not-found") == [blob_id]
        client.quirks.blob_get = False
        refused = await client.post(["Blob/get", {}, "c"], using=USING)
        assert refused.json()["type"].endswith(":unknownCapability")
