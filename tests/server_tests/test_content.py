"""Downloads and Blob/get: the bytes, and the ways they go wrong."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import h2.exceptions
import httpx
import pytest
import trio

from tests.server import Account

from .speaking import BLOB, CORE, inbox_of, mail, speaking

USING = (CORE, BLOB)
PROPERTIES = ["data:asBase64", "size"]


async def test_download() -> None:
    async with speaking(inbox_of(2)) as s:
        blob_id = s.account.emails["M1"].blob_id
        response = await s.download(blob_id)
        assert response.content == mail(1)
        assert response.headers["content-type"] == "a/b"
        assert s.server.counts.blobs == {blob_id: 1}
        assert s.server.counts.bytes_sent == len(mail(1))
        s.account.destroy_email("M1")
        assert (await s.download(blob_id)).status_code == 404


async def test_cyrus_blob_ids() -> None:
    account = Account(blob_scheme="cyrus")
    inbox = account.create_mailbox("Inbox")
    email = account.emails[account.add_email(b"x", [inbox])]
    assert email.blob_id == "G" + hashlib.sha1(b"x", usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("fault", ["short", "cut"])
async def test_broken_downloads(fault: Any, *, http2: bool) -> None:
    async with speaking(inbox_of(1), http2=http2) as s:
        blob_id = s.account.emails["M0"].blob_id
        s.quirks.download_fault = fault
        s.quirks.download_fault_count = 1
        # Over HTTP/2 the error of h2 comes through httpx as it is.
        with pytest.raises((httpx.RemoteProtocolError, h2.exceptions.InvalidBodyLengthError)):
            await s.download(blob_id)
        assert (await s.download(blob_id)).content == mail(0)


async def test_wrong_downloads() -> None:
    async with speaking(inbox_of(2)) as s:
        blob_id, other = (email.blob_id for email in s.account.emails.values())
        s.quirks.fault_blob_ids = [blob_id]
        s.quirks.download_fault = "wrong-bytes"
        wrong = (await s.download(blob_id)).content
        assert len(wrong) == len(mail(0))
        assert wrong != mail(0)
        assert (await s.download(other)).content == mail(1)
        s.quirks.download_fault = "wrong-length"
        assert len((await s.download(blob_id)).content) == len(mail(0)) + 7
        s.quirks.wrong_length_by = -9
        assert (await s.download(blob_id)).content == mail(0)[:-9]
        s.quirks.download_fault = "not-found"
        assert (await s.download(blob_id)).status_code == 404
        s.quirks.download_fault = "stall"
        with pytest.raises(httpx.ReadTimeout):
            await s.http.get(f"/jmap/download/{s.account.id}/{blob_id}/x", timeout=0.2)
        s.quirks.reset()
        s.quirks.download_delay = 0.1
        start = trio.current_time()
        await s.download(blob_id)
        assert trio.current_time() - start >= 0.1


async def test_blob_get() -> None:
    account = inbox_of(0)
    fox, binary = b"The quick brown fox jumped over the lazy dog", b"\xff\xfe"
    for raw in (fox, binary):
        account.add_email(raw, ["Pinbox"])
    fox_id, binary_id = (email.blob_id for email in account.emails.values())
    async with speaking(account) as s:
        whole = await s.call("Blob/get", using=USING, ids=[fox_id, binary_id, "Bx"])
        assert whole["notFound"] == ["Bx"]
        assert whole["list"] == [
            {"id": fox_id, "data:asText": fox.decode(), "size": len(fox)},
            {"id": binary_id, "data:asBase64": "//4=", "size": 2, "isEncodingProblem": True},
        ]
        # The example of RFC 9404 §4.2.1.
        properties = ["data:asText", "digest:sha", "size"]
        (part,) = (
            await s.call(
                "Blob/get", using=USING, ids=[fox_id], properties=properties, offset=4, length=9
            )
        )["list"]
        assert part == {
            "id": fox_id, "data:asText": "quick bro", "size": len(fox),
            "digest:sha": "QiRAPtfyX8K6tm1iOAtZ87Xj3Ww=",
        }  # fmt: skip
        (beyond,) = (
            await s.call(
                "Blob/get", using=USING, ids=[binary_id], properties=["data:asText"], offset=0,
                length=9,
            )
        )["list"]  # fmt: skip
        assert beyond["isTruncated"] is beyond["isEncodingProblem"] is True
        assert beyond["data:asText"] is None
        assert s.server.counts.blobs[fox_id] == 2


async def test_faults_of_blob_get_are_those_of_one_blob() -> None:
    async with speaking(inbox_of(3)) as s:
        ids = [email.blob_id for email in s.account.emails.values()]
        s.quirks.fault_blob_ids = ids[:1]
        s.quirks.blob_fault = "truncated"
        answer = await s.call("Blob/get", using=USING, ids=ids, properties=PROPERTIES)
        contents = [base64.b64decode(blob["data:asBase64"]) for blob in answer["list"]]
        assert contents == [mail(0)[: len(mail(0)) // 2], mail(1), mail(2)]
        assert [blob.get("isTruncated") for blob in answer["list"]] == [True, None, None]


async def test_answers_of_blob_get_can_be_too_large() -> None:
    async with speaking(inbox_of(2)) as s:
        ids = [email.blob_id for email in s.account.emails.values()]
        s.quirks.max_blob_bytes = len(mail(0)) + len(mail(1)) - 1
        refused = await s.call("Blob/get", using=USING, ids=ids, properties=PROPERTIES)
        assert refused["type"] == "requestTooLarge"
        assert s.server.counts.blob_reads == 0
        for blob_id in ids:
            answer = await s.call("Blob/get", using=USING, ids=[blob_id], properties=PROPERTIES)
            assert answer["list"][0]["id"] == blob_id


async def test_faults_of_blob_get() -> None:
    async with speaking(inbox_of(1)) as s:
        blob_id = s.account.emails["M0"].blob_id

        async def get(fault: Any) -> Any:
            s.quirks.blob_fault = fault
            answer = await s.call("Blob/get", using=USING, ids=[blob_id], properties=PROPERTIES)
            return answer["list"][0] if answer["list"] else answer["notFound"]

        assert base64.b64decode((await get(None))["data:asBase64"]) == mail(0)
        wrong = base64.b64decode((await get("wrong-bytes"))["data:asBase64"])
        assert wrong != mail(0)
        assert len(wrong) == len(mail(0))
        assert len(base64.b64decode((await get("wrong-length"))["data:asBase64"])) > len(wrong)
        assert (await get("truncated"))["isTruncated"] is True
        assert (await get("null"))["data:asBase64"] is None
        assert (await get("not-base64"))["data:asBase64"].startswith("*")
        assert (await get("wrong-size"))["size"] == len(mail(0)) + 7
        assert await get("not-found") == [blob_id]
        s.quirks.blob_get = False
        refused = await s.post(["Blob/get", {}, "c"], using=USING)
        assert refused.json()["type"].endswith(":unknownCapability")
