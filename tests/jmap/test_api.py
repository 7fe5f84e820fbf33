"""API requests, the responses that are accepted, and a session that changes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.errors import ConfigError, MethodError, ProtocolError, RequestError
from jmapfs.jmap.client import Client
from jmapfs.jmap.method_calls import MethodCall
from tests.jmap.fake import CORE, MAIL, FakeServer, opened, session_document, with_limits

# ruff: noqa: ARG001 - the fixture sets the clock


def answering(server: FakeServer, responses: Any, state: str = "s1") -> None:
    document = {"methodResponses": responses, "sessionState": state}
    server.before = lambda request: (
        httpx.Response(200, json=document) if request.method == "POST" else None
    )


def get(call_id: str = "0", **arguments: Any) -> MethodCall:
    return MethodCall("Email/get", {"accountId": "A1", "ids": [], **arguments}, call_id)


async def test_request_has_the_capabilities_and_the_calls() -> None:
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


async def test_capabilities_of_a_call_are_used_if_the_server_has_them() -> None:
    document = session_document()
    document["capabilities"]["urn:x"] = {}
    server = FakeServer(session=document)
    async with opened(server) as client:
        await client.request(
            [
                MethodCall(
                    "Email/get",
                    {"accountId": "A1", "ids": []},
                    "0",
                    frozenset({"urn:x", "urn:y", MAIL}),
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


async def test_method_error_is_raised() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["error", {"type": "serverFail", "description": "disk\nfull"}, "0"]])
        with pytest.raises(MethodError) as caught:
            await client.request([get()])
    assert caught.value.kind == "serverFail"
    assert caught.value.method == "Email/get"
    assert str(caught.value) == "the server answered Email/get with serverFail: disk full"


async def test_method_errors_can_be_returned_per_call() -> None:
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
async def test_responses_that_do_not_match_the_calls_are_an_error(responses: Any) -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, responses)
        with pytest.raises(ProtocolError):
            await client.request([get()])


async def test_method_error_without_a_type_is_accepted() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["error", {}, "0"]])
        with pytest.raises(MethodError, match="without a type"):
            await client.request([get()])


async def test_calls_are_split_by_the_limit_of_the_server() -> None:
    server = FakeServer(session=with_limits(maxCallsInRequest=2))
    async with opened(server) as client:
        responses = await client.request([get(str(n)) for n in range(5)])
    assert [r.call_id for r in responses] == ["0", "1", "2", "3", "4"]
    counts = [len(json.loads(r.content)["methodCalls"]) for r in server.requests]
    assert counts == [2, 2, 1]


async def test_invalid_calls_raise_value_error() -> None:
    server = FakeServer(session=with_limits(maxCallsInRequest=2))
    async with opened(server) as client:
        with pytest.raises(ValueError, match="same id"):
            await client.request([get("a"), get("a")])
        calls = [get("a"), get("b"), MethodCall("Email/get", {"#ids": {}}, "c")]
        with pytest.raises(ValueError, match="refer to each other"):
            await client.request(calls)


async def test_request_larger_than_the_limit_is_not_sent() -> None:
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


async def test_concurrent_requests_fetch_the_session_once(autojump_clock: MockClock) -> None:
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


async def test_unknown_session_state_causes_one_fetch() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["Email/get", {"state": "e", "list": []}, "0"]], state="elsewhere")
        for _ in range(5):
            await client.email_state()
    assert server.paths.count("/jmap/session") == 1


async def test_session_that_changes_all_the_time_is_fetched_ever_more_seldom(
    autojump_clock: MockClock,
) -> None:
    server = FakeServer()
    async with opened(server) as client:
        for number in range(120):
            server.session["state"] = f"s{number + 2}"
            await client.email_state()
            await trio.sleep(0.5)
        assert 4 <= server.paths.count("/jmap/session") <= 8
        # After a quiet time, a change is seen at once.
        await trio.sleep(1000)
        await client.email_state()
        server.session["state"] = "last"
        await client.email_state()
        await trio.sleep(80)
        await client.email_state()
        assert client.session.state == "last"


async def test_failed_fetch_of_the_session_is_repeated() -> None:
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
async def test_api_may_move_within_a_session(url: str) -> None:
    server = FakeServer()
    async with opened(server) as client:
        before = client.identity
        server.before = lambda request: (
            httpx.Response(200, json=server.respond(json.loads(request.content)))
            if request.method == "POST"
            else None
        )
        server.session["apiUrl"] = url
        await renew(client, server)
        assert client.session.api_url == url
        assert client.identity.is_same_account(before)
    assert str(server.requests[-1].url) == url


async def test_session_of_another_user_is_refused() -> None:
    server = FakeServer()
    async with opened(server) as client:
        server.session["username"] = "bob@example.org"
        for _ in range(2):
            with pytest.raises(ConfigError, match="now belongs to bob@"):
                await renew(client, server)
        # A server need not state the name.
        server.session["username"] = None
        await renew(client, server)


async def test_response_for_another_account_is_an_error() -> None:
    server = FakeServer()
    async with opened(server) as client:
        answering(server, [["Email/get", {"accountId": "A9", "state": "e", "list": []}, "0"]])
        with pytest.raises(ProtocolError, match="another account"):
            await client.email_state()
