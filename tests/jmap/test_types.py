"""Malformed responses of every kind raise a JmapfsError with one line, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from jmapfs.errors import JmapfsError, ProtocolError
from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.types import decode
from tests.jmap.fake import CREDENTIALS, SESSION_URL, FakeServer, session_document


class Sample(msgspec.Struct):
    number: int = 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the sample is empty"),
        (b" \n", "the sample is empty"),
        (b"<html>\x1b[2J", "not JSON .*text/html, it begins with '<html>"),
        (b'{"number": 1', "truncated"),
        (b'{"number": NaN}', "not JSON"),
        (b'{"number": "1"}', r"Expected `int`, got `str` - at `\$.number`"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"number": 1e999}', r"\$.number"),
        (b'{"\xff": 1, "number": "\xff"}', "."),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"number": 1} trailing', "not JSON"),
    ],
)
def test_invalid_document_is_described_on_one_line(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        decode(data, Sample, "the sample", content_type="text/html")
    text = str(caught.value)
    assert text.startswith("the sample")
    assert len(text) < 500
    assert text.isprintable()


def test_unknown_members_are_ignored() -> None:
    assert decode(b'{"more": {"x": []}, "number": 3}', Sample, "it") == Sample(3)


# --- Fuzzing: valid documents, changed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> bytes:
    """Draw the document with a part replaced or left out, or with changed bytes."""
    if draw(st.booleans()):
        value = _replace(draw, document)
        return json.dumps(value).encode()
    data = bytearray(json.dumps(document).encode())
    at = draw(st.integers(0, len(data)))
    match draw(st.sampled_from(["cut", "insert", "flip"])):
        case "cut":
            del data[at:]
        case "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=5))
        case _:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(data)


def _replace(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 5)):
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _replace(draw, value[key])}
    if isinstance(value, list | tuple) and value and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _replace(draw, value[at]), *value[at + 1 :]]
    return draw(JSON)


def run_against(
    body: bytes, wanted: Callable[[httpx.Request], bool], use: Callable[[Client], Awaitable[object]]
) -> None:
    """Use a client of a server that sends this body in response to the `wanted` requests."""

    async def main() -> None:
        server = FakeServer(3)
        server.before = lambda request: (
            httpx.Response(200, content=body) if wanted(request) else None
        )
        async with connect(SESSION_URL, CREDENTIALS, network=server) as client:
            await use(client)

    text = ""
    try:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    except JmapfsError as error:
        text = str(error)
    assert text == "" or text.isprintable()
    assert "horse" not in text


def is_api(request: httpx.Request) -> bool:
    return request.method == "POST"


def answer_to(calls: list[list[Any]]) -> dict[str, Any]:
    server = FakeServer(3)
    server.change("Email/changes", oldState="1", newState="2", created=["M1"])
    return server.respond({"methodCalls": calls})


EMAILS = answer_to([["Email/get", {"accountId": "A1", "ids": ["M0", "M1", "M2"]}, "0"]])
COUNTS = answer_to(
    [
        ["Email/query", {"accountId": "A1", "limit": 1, "calculateTotal": True}, "query"],
        ["Mailbox/get", {"accountId": "A1", "ids": None}, "mailboxes"],
        ["Email/get", {"accountId": "A1", "ids": []}, "state"],
    ]
)
MAILBOXES = answer_to([["Mailbox/get", {"accountId": "A1", "ids": None}, "0"]])
CHANGES = answer_to(
    [
        ["Email/changes", {"accountId": "A1", "sinceState": "1"}, "emails"],
        ["Email/get", {"accountId": "A1", "ids": ["M1"]}, "get created"],
        ["Email/get", {"accountId": "A1", "ids": []}, "get updated"],
    ]
)


@given(changed(session_document()))
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_session_is_handled(body: bytes) -> None:
    async def use(client: Client) -> None:
        await client.email_state()

    run_against(body, lambda request: request.method == "GET", use)


@given(changed(EMAILS))
@settings(max_examples=300, deadline=None)
def test_any_change_of_emails_is_handled(body: bytes) -> None:
    async def use(client: Client) -> None:
        wanted = {"M0", "M1", "M2"}
        emails, not_found, bad = await client.emails(wanted)
        ids = {email.id for email in emails} | {email.id for email in bad}
        assert ids | set(not_found) == wanted

    run_against(body, is_api, use)


@given(changed(COUNTS))
@settings(max_examples=200, deadline=None)
def test_any_change_of_the_counts_is_handled(body: bytes) -> None:
    run_against(body, is_api, lambda client: client.counts())


@given(changed(MAILBOXES))
@settings(max_examples=200, deadline=None)
def test_any_change_of_the_mailboxes_is_handled(body: bytes) -> None:
    run_against(body, is_api, lambda client: client.mailboxes())


@given(changed(CHANGES))
@settings(max_examples=200, deadline=None)
def test_any_change_of_the_changes_is_handled(body: bytes) -> None:
    run_against(body, is_api, lambda client: client.email_changes("1"))


@given(
    st.integers(200, 599),
    st.dictionaries(
        st.sampled_from(
            [
                "Location",
                "Retry-After",
                "Content-Type",
                "Content-Length",
                "WWW-Authenticate",
                "Content-Encoding",
            ]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
        max_size=3,
    ),
    st.binary(max_size=40),
)
@settings(max_examples=300, deadline=None)
def test_any_http_response_is_handled(status: int, headers: dict[str, str], body: bytes) -> None:
    class AnyServer(FakeServer):
        def answer(self, _: httpx.Request) -> httpx.Response:
            response = httpx.Response(status, stream=httpx.ByteStream(body))
            response.headers.update(headers)
            return response

    async def main() -> None:
        async with connect(SESSION_URL, CREDENTIALS, network=AnyServer()):
            pass

    with pytest.raises(JmapfsError) as caught:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert str(caught.value).isprintable()
