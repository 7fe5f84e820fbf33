"""The API endpoint: request problems, method errors, result references and limits."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from tests.server import MethodFault

from .jmap_client import account_with_inbox, connected


async def test_echo_returns_its_arguments() -> None:
    async with connected() as client:
        (response,) = await client.responses(["Core/echo", {"a": [1, None]}, "x"])
        assert response == ["Core/echo", {"a": [1, None]}, "x"]


@pytest.mark.parametrize(
    ("content", "kind", "limit"),
    [
        (b"{", "notJSON", None),
        (b"[]", "notRequest", None),
        (b'{"using": [], "methodCalls": [["a"]]}', "notRequest", None),
        (b'{"using": ["urn:x"], "methodCalls": []}', "unknownCapability", None),
        (b'{"using": [], "methodCalls": [1, 2, 3]}', "limit", "maxCallsInRequest"),
        (b" " * 1001, "limit", "maxSizeRequest"),
    ],
)
async def test_request_problems(content: bytes, kind: str, limit: str | None) -> None:
    async with connected(max_calls_in_request=2, max_size_request=1000) as client:
        json_type = {"content-type": "application/json"}
        response = await client.http.post("/jmap/api", content=content, headers=json_type)
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["type"] == f"urn:ietf:params:jmap:error:{kind}"
        assert response.json().get("limit") == limit


async def test_the_connection_is_usable_after_a_large_refused_request() -> None:
    async with connected(max_size_request=1000) as client:
        refused = await client.http.post("/jmap/api", content=b" " * 3_000_000)
        assert refused.status_code == 400
        assert (await client.http.get("/session")).status_code == 200


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("Email/set", {}, "unknownMethod"),
        ("Blob/get", {"ids": []}, "unknownMethod"),  # its capability is not in `using`
        ("Email/get", {"accountId": "Ax", "ids": []}, "accountNotFound"),
        ("Email/get", {"accountId": None, "ids": []}, "invalidArguments"),
        ("Email/get", {"ids": "M1"}, "invalidArguments"),
        ("Email/get", {"ids": [], "properties": ["nonsense"]}, "invalidArguments"),
        ("Email/get", {"ids": [], "nonsense": 1}, "invalidArguments"),
        ("Email/get", {"ids": ["a", "b", "c", "d"]}, "requestTooLarge"),
        ("Email/get", {"ids": None}, "requestTooLarge"),
        ("Email/changes", {"sinceState": "0-0"}, "cannotCalculateChanges"),
        ("Email/changes", {"sinceState": "", "maxChanges": 0}, "invalidArguments"),
        ("Email/query", {"filter": {"text": "x"}}, "unsupportedFilter"),
        ("Email/query", {"sort": [{"property": "size"}]}, "unsupportedSort"),
        ("Email/query", {"anchor": "Mnone"}, "anchorNotFound"),
        ("Email/query", {"limit": -1}, "invalidArguments"),
        ("Email/get", {"#ids": {"resultOf": "x", "name": "y", "path": "/ids"}},
         "invalidResultReference"),
        ("Email/get", {"ids": [], "#ids": {}}, "invalidArguments"),
    ],
)  # fmt: skip
async def test_method_errors(name: str, arguments: dict[str, Any], error: str) -> None:
    async with connected(account_with_inbox(4), max_objects_in_get=3) as client:
        assert (await client.call(name, **arguments))["type"] == error


async def test_result_references() -> None:
    async with connected(account_with_inbox(3)) as client:
        account = client.account.id

        def reference(result_of: str, name: str, path: str) -> dict[str, str]:
            return {"resultOf": result_of, "name": name, "path": path}

        answers = await client.responses(
            ["Email/query", {"accountId": account}, "q"],
            ["Email/get", {"accountId": account, "properties": ["threadId"],
                           "#ids": reference("q", "Email/query", "/ids")}, "g"],
            ["Thread/get", {"accountId": account,
                            "#ids": reference("g", "Email/get", "/list/*/threadId")}, "t"],
            ["Core/echo", {"#ids": reference("t", "Thread/get", "/list/*/emailIds")}, "e"],
            ["Core/echo", {"#ids": reference("t", "Email/get", "/list")}, "f"],
            ["Core/echo", {"#ids": reference("t", "Thread/get", "/nothing")}, "h"],
        )  # fmt: skip
        assert answers[3][1]["ids"] == answers[0][1]["ids"] == ["M2", "M1", "M0"]
        assert [each[0] for each in answers[4:]] == ["error", "error"]
        assert answers[5][1]["type"] == "invalidResultReference"


async def test_method_faults() -> None:
    async with connected(method_faults=[MethodFault("Mailbox/get", count=2, skip=1)]) as client:
        answers = [(await client.call("Mailbox/get")).get("type") for _ in range(4)]
        assert answers == [None, "serverFail", "serverFail", None]
        assert client.server.counts.methods["Mailbox/get"] == 4


async def test_concurrent_requests_are_limited() -> None:
    account = account_with_inbox(1)
    blob_id = account.emails["M0"].blob_id
    async with connected(account, max_concurrent_requests=3, request_delay=1.0) as client:
        statuses: list[int] = []

        async def echo() -> None:
            statuses.append((await client.post(["Core/echo", {}, "c"])).status_code)

        async def download() -> None:
            statuses.append((await client.download(blob_id)).status_code)

        async def six(request: Any) -> list[int]:
            statuses.clear()
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(request)
            return sorted(statuses)

        assert await six(echo) == [200] * 3 + [400] * 3
        assert client.server.counts.max_concurrent_api == 6
        assert await six(download) == [200] * 6
        client.quirks.count_downloads = True
        client.quirks.concurrency_status = 429
        assert await six(download) == [200] * 3 + [429] * 3
        await client.server.wait_until_idle()


async def test_responses_can_be_delayed_or_missing() -> None:
    async with connected(request_delay=0.2) as client:
        start = trio.current_time()
        await client.post()
        assert trio.current_time() - start >= 0.2
        client.quirks.request_delay = 0
        client.quirks.hang = ["api"]
        with pytest.raises(httpx.ReadTimeout):
            await client.http.post("/jmap/api", json={}, timeout=0.2)
        assert (await client.http.get("/session")).status_code == 200
        await client.server.wait_until_idle()


async def test_calls_after_an_unknown_method_are_executed() -> None:
    async with connected() as client:
        answers = await client.responses(["No/such", {}, "1"], ["Core/echo", {}, "2"])
        assert answers == [["error", {"type": "unknownMethod"}, "1"], ["Core/echo", {}, "2"]]
