"""API requests: what is posted, which responses are accepted, and the session's renewal."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.errors import ConfigError, MethodError, ProtocolError, RequestError
from jmapfs.jmap.api import MethodCall
from jmapfs.jmap.client import Client
from tests.jmap.fake import CORE, MAIL, FakeServer, opened, session_document, with_limits

# ruff: noqa: ARG001 - a clock is set by being asked for


def answering(server: FakeServer, responses: Any, state: str = "s1") -> None:
    document = {"methodResponses": responses, "sessionState": state}
    server.before = lambda request: (
        httpx.Response(200, json=document) if request.method == "POST" else None
    )


def get(call_id: str = "0", **arguments: Any) -> MethodCall:
    return MethodCall("Email/get", {"accountId": "A1", "ids": [], **arguments}, call_id)


async def test_what_is_posted() -> None:
    server = FakeServer()
    async with opened(server) as client:
        await client.request([get("a"), get("b")])
    [request] = server.requests
    assert str(request.url) == "https://mail.example.org/jmap/"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept"] == "application/json"
    assert json.loads(request.content) == {
        "using": [CORE, MAIL],
        "methodCalls": [
            ["Email/get", {"accountId": "A1", "ids": []}, "a"],
            ["Email/get", {"accountId": "A1", "ids": []}, "b"],
        ],
    }


async def test_capabilities_a_call_needs() -> None:
    document = session_document()
    document["capabilities"]["urn:x"] = {}
    server = FakeServer(session=document)
    async with opened(server) as client:
        await client.request(
            [
                MethodCall(
                    "Email/get", {"accountId": "A1", "ids": []}, "0", frozenset({"urn:x", "urn:y"})
                )
            ]
        )
    assert json.loads(server.requests[0].content)["using"] == [CORE, MAIL, "urn:x"]


async def test_responses_are_in_the_order_of_the_calls() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["Email/get", {"n": 2}, "b"], ["Email/get", {"n": 1}, "a"]])
        responses = await client.request([get("a"), get("b")])
    assert [r.call_id for r in responses] == ["a", "b"]


async def test_method_error() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["error", {"type": "serverFail", "description": "disk\nfull"}, "0"]])
        with pytest.raises(MethodError) as caught:
            await client.request([get()])
    assert caught.value.kind == "serverFail"
    assert caught.value.method == "Email/get"
    assert str(caught.value) == "the server answered Email/get with serverFail: disk full"


async def test_method_error_on_request_per_call() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["error", {"type": "serverFail"}, "a"], ["Email/get", {}, "b"]])
        first, second = await client.request([get("a"), get("b")], raise_errors=False)
    assert first.error is not None
    assert first.error.kind == "serverFail"
    assert second.error is None
    with pytest.raises(MethodError):
        first.decode(dict)


async def test_method_error_does_not_show_the_secret() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["error", {"type": "x", "description": "pw correct-horse"}, "0"]])
        with pytest.raises(MethodError) as caught:
            await client.request([get()])
    assert "horse" not in str(caught.value) + caught.value.description


@pytest.mark.parametrize(
    "responses",
    [
        [],
        [["Email/get", {}, "other"]],
        [["error", {"type": "serverFail"}, "other"]],
        [["Mailbox/get", {}, "0"]],
        [["Email/get", {}, "0"], ["Email/get", {}, "0"]],
        [["Email/get", {}]],
        [["Email/get", {}, 0]],
        [[]],
        [None],
        None,
        {},
        "x",
        [["error", [], "0"]],
        [["error", {"type": 5}, "0"]],
    ],
)
async def test_responses_that_do_not_fit(responses: Any) -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, responses)
        with pytest.raises(ProtocolError):
            await client.request([get()])


async def test_error_without_a_type() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["error", {}, "0"]])
        with pytest.raises(MethodError, match="without a type"):
            await client.request([get()])


async def test_more_calls_than_the_server_takes() -> None:
    server = FakeServer(session=with_limits(maxCallsInRequest=2))
    async with opened(server) as client:
        responses = await client.request([get(str(n)) for n in range(5)])
    assert [r.call_id for r in responses] == ["0", "1", "2", "3", "4"]
    counts = [len(json.loads(r.content)["methodCalls"]) for r in server.requests]
    assert counts == [2, 2, 1]


async def test_bugs_of_the_caller_are_no_server_errors() -> None:
    server = FakeServer(session=with_limits(maxCallsInRequest=2))
    async with opened(server) as client:
        with pytest.raises(ValueError, match="same id"):
            await client.request([get("a"), get("a")])
        calls = [get("a"), get("b"), MethodCall("Email/get", {"#ids": {}}, "c")]
        with pytest.raises(ValueError, match="refer to each other"):
            await client.request(calls)


async def test_request_larger_than_the_server_takes_is_not_sent() -> None:
    server = FakeServer(session=with_limits(maxSizeRequest=1000))
    async with opened(server) as client:
        with pytest.raises(RequestError) as caught:
            await client.request([get(ids=["x" * 2000])])
    assert caught.value.limit == "maxSizeRequest"
    assert not server.requests


# --- The session changes


async def renew(client: Client, server: FakeServer) -> None:
    server.session["state"] = "s2"
    await client.email_state()
    await client.email_state()


async def test_session_is_fetched_again_when_its_state_changes() -> None:
    server = FakeServer()
    async with opened(server) as client:
        server.session["apiUrl"] = "https://mail.example.org/v2/"
        server.session["capabilities"][CORE]["maxConcurrentRequests"] = 2
        await renew(client, server)
        assert client.session.state == "s2"
        assert client.concurrency == 2
        await client.email_state()
    assert [str(request.url) for request in server.requests] == [
        "https://mail.example.org/jmap/",
        "https://mail.example.org/jmap/session",
        "https://mail.example.org/v2/",
        "https://mail.example.org/v2/",
    ]


async def test_session_is_fetched_once_for_many(autojump_clock: MockClock) -> None:
    server = FakeServer(1)
    async with opened(server) as client:
        server.session["state"] = "s2"
        await client.email_state()
        server.delay = 1.0
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(client.email_state)
                nursery.start_soon(client.download_blob, "B0")
    assert server.paths.count("/jmap/session") == 1


async def test_state_that_never_fits_is_asked_about_once() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["Email/get", {"state": "e", "list": []}, "0"]], state="elsewhere")
        for _ in range(5):
            await client.email_state()
    assert server.paths.count("/jmap/session") == 1


async def test_renewal_that_fails_is_tried_again() -> None:
    server = FakeServer()
    async with opened(server) as client:
        server.session["state"] = "s2"
        await client.email_state()
        server.before = lambda request: (
            httpx.Response(403) if request.url.path == "/jmap/session" else None
        )
        with pytest.raises(Exception, match="403"):
            await client.email_state()
        server.before = None
        await client.email_state()
        assert client.session.state == "s2"


async def test_calls_are_for_the_selected_account() -> None:
    server = FakeServer()
    async with opened(server, account="shared") as client:
        assert client.account.id == "A2"
        await client.email_state()
    assert server.calls[0][1]["accountId"] == "A2"


async def test_session_without_the_account_is_refused() -> None:
    server = FakeServer()
    async with opened(server) as client:
        del server.session["accounts"]["A1"]
        with pytest.raises(ConfigError, match="no longer has the account A1"):
            await renew(client, server)
        assert client.account.id == "A1"


@pytest.mark.parametrize("url", ["https://api.example.org/jmap/", "https://mail.example.org:444/"])
async def test_session_with_another_server_is_refused(url: str) -> None:
    server = FakeServer()
    async with opened(server) as client:
        server.session["apiUrl"] = url
        for _ in range(2):
            with pytest.raises(ConfigError, match="moved from"):
                await renew(client, server)
    assert {request.url.host for request in server.requests} == {"mail.example.org"}
    assert {request.url.port for request in server.requests} == {None}


async def test_answer_for_another_account() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["Email/get", {"accountId": "A9", "state": "e", "list": []}, "0"]])
        with pytest.raises(ProtocolError, match="another account"):
            await client.email_state()
