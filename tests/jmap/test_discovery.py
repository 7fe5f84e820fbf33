"""Discovery: the URLs it requests, those it refuses, and which servers get the credentials."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.errors import (
    AuthenticationError,
    ConfigError,
    JmapfsError,
    ProtocolError,
    ServerError,
    UnreachableError,
)
from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.credentials import BearerCredentials
from jmapfs.jmap.discovery import Resolver, ServiceTarget
from tests.jmap.fake import CREDENTIALS, FakeServer, resolver, session_document

# ruff: noqa: ARG001 - the fixture sets the clock


NO_RECORDS = resolver({})


async def found(
    location: str, server: httpx.AsyncBaseTransport, records: Resolver = NO_RECORDS
) -> Client:
    async with connect(location, CREDENTIALS, network=server, resolver=records) as client:
        return client


def asked(server: FakeServer) -> list[str]:
    """Return every requested URL; a star marks those that got the credentials."""
    return [
        str(request.url) + ("*" if "authorization" in request.headers else "")
        for request in server.requests
    ]


def redirecting(
    hops: dict[str, str], status: int = 301
) -> Callable[[httpx.Request], httpx.Response | None]:
    def before(request: httpx.Request) -> httpx.Response | None:
        target = hops.get(str(request.url))
        return None if target is None else httpx.Response(status, headers={"Location": target})

    return before


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://mail.example.org/jmap/session", "https://mail.example.org/jmap/session"),
        ("http://127.0.0.1:8080/jmap/session", "http://127.0.0.1:8080/jmap/session"),
        ("http://[::1]:8080/jmap/session", "http://[::1]:8080/jmap/session"),
        ("http://localhost/jmap/session", "http://localhost/jmap/session"),
        ("https://mail.example.org", "https://mail.example.org/.well-known/jmap"),
        ("http://127.1.2.3:80/", "http://127.1.2.3/.well-known/jmap"),
        ("mail.example.org", "https://mail.example.org/.well-known/jmap"),
        ("mail.example.org:8443", "https://mail.example.org:8443/.well-known/jmap"),
        (" mail.example.org ", "https://mail.example.org/.well-known/jmap"),
        ("[::1]:8443", "https://[::1]:8443/.well-known/jmap"),
        ("alice@example.org", "https://example.org/.well-known/jmap"),
    ],
)
async def test_location_leads_to_url(location: str, url: str) -> None:
    server = FakeServer()
    client = await found(location, server)
    assert asked(server) == [url, url + "*"]
    assert httpx.URL(client.session.url) == httpx.URL(url)


async def test_srv_record_names_the_host() -> None:
    server = FakeServer()
    records = resolver({"_jmap._tcp.example.org": [ServiceTarget("jmap.example.net", 443)]})
    await found("alice@example.org", server, records)
    assert asked(server)[-1] == "https://jmap.example.net/.well-known/jmap*"


async def test_srv_record_names_the_port() -> None:
    server = FakeServer()
    records = resolver({"_jmap._tcp.example.org": [ServiceTarget("jmap.example.net.", 8443)]})
    await found("alice@example.org", server, records)
    assert asked(server)[-1] == "https://jmap.example.net:8443/.well-known/jmap*"


async def test_second_srv_target_is_used_when_the_first_is_down(autojump_clock: MockClock) -> None:
    server = FakeServer()

    def before(request: httpx.Request) -> httpx.Response | None:
        if request.url.host == "one.example.net":
            raise httpx.ConnectError("refused")
        return None

    server.before = before
    targets = [ServiceTarget("one.example.net", 443), ServiceTarget("two.example.net", 443)]
    client = await found("alice@example.org", server, resolver({"_jmap._tcp.example.org": targets}))
    assert client.session.url == "https://two.example.net/.well-known/jmap"


async def test_srv_record_may_say_that_there_is_no_service() -> None:
    server = FakeServer()
    records = resolver({"_jmap._tcp.example.org": [ServiceTarget(".", 0)]})
    with pytest.raises(UnreachableError, match="does not offer JMAP"):
        await found("alice@example.org", server, records)
    assert not server.requests


async def test_lookup_ends_at_the_deadline(autojump_clock: MockClock) -> None:
    async def endless(name: str) -> list[ServiceTarget]:
        await trio.sleep_forever()
        raise AssertionError(name)

    with pytest.raises(UnreachableError, match="in time"):
        await found("alice@example.org", FakeServer(), endless)
    assert trio.current_time() <= 31


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://mail.example.org/jmap/session", "in the clear"),
        ("http://mail.example.org", "in the clear"),
        ("http://127.0.0.1.example.org/", "in the clear"),
        ("http://localhost.example.org/", "in the clear"),
        ("https://alice:geheim@mail.example.org/jmap", "user name or a password"),
        ("https://geheim@mail.example.org/jmap", "user name or a password"),
        ("alice:geheim@mail.example.org", "password"),
        ("ftp://mail.example.org/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("https:///jmap", "no host"),
        ("https://mail.example.org:99999/", "URL|port"),
        ("https://[::1/", "not a usable URL"),
        ("", "not usable"),
        ("mail example org", "not usable"),
        ("mail.example.org/jmap", "not usable"),
        ("@", "not usable"),
        ("alice@", "not usable"),
        ("alice@exa mple", "not usable"),
    ],
)
async def test_unusable_location_is_refused_before_anything_is_sent(
    location: str, words: str
) -> None:
    server = FakeServer()
    with pytest.raises(ConfigError, match=words) as caught:
        await found(location, server)
    assert not server.requests
    assert "geheim" not in str(caught.value)


async def test_redirects_are_followed_without_credentials() -> None:
    server = FakeServer()
    server.before = redirecting(
        {
            "https://example.org/.well-known/jmap": "https://www.example.org/jmap",
            "https://www.example.org/jmap": "//mail.example.org/jmap/session",
        }
    )
    client = await found("example.org", server)
    assert asked(server) == [
        "https://example.org/.well-known/jmap",
        "https://www.example.org/jmap",
        "https://mail.example.org/jmap/session",
        "https://mail.example.org/jmap/session*",
    ]
    assert client.session.api_url == "https://mail.example.org/jmap/"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_every_redirect_status_is_followed(status: int) -> None:
    server = FakeServer()
    server.before = redirecting({"https://example.org/.well-known/jmap": "/jmap/session"}, status)
    client = await found("example.org", server)
    assert client.session.url == "https://example.org/jmap/session"


async def test_redirect_of_an_authenticated_request_is_followed() -> None:
    server = FakeServer()

    def before(request: httpx.Request) -> httpx.Response | None:
        if request.url.host == "a.example.org" and "authorization" in request.headers:
            return httpx.Response(302, headers={"Location": "https://b.example.org/jmap/session"})
        return None

    server.before = before
    await found("a.example.org", server)
    assert asked(server)[2:] == [
        "https://b.example.org/jmap/session",
        "https://b.example.org/jmap/session*",
    ]


async def test_at_most_five_redirects_are_followed() -> None:
    url = "https://example.org/{}".format
    hops = {url(n): url(n + 1) for n in range(5)}
    server = FakeServer(session=session_document())

    def session_at(path: str) -> Callable[[httpx.Request], httpx.Response | None]:
        follow = redirecting(hops)

        def before(request: httpx.Request) -> httpx.Response | None:
            if request.url.path == path and "authorization" in request.headers:
                return httpx.Response(200, json=server.session)
            return follow(request) or httpx.Response(401)

        return before

    server.before = session_at("/5")
    await found(url(0), server)
    hops[url(5)] = url(6)
    server.before = session_at("/6")
    with pytest.raises(ProtocolError, match=r"5 times, the last time to https://example\.org/6"):
        await found(url(0), server)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://mail.example.org/jmap", "in the clear"),
        ("http://127.0.0.1:9/jmap?secret", "to http://127.0.0.1:9/jmap leads from https:// to"),
        ("https://alice:geheim@mail.example.org/", "user name or a password"),
        ("ftp://mail.example.org/", "https://"),
        ("https://[::1/", "not a usable URL"),
        ("javascript:alert(1)", "https://"),
        ("", "no target"),
    ],
)
async def test_unsafe_redirects_are_refused(target: str, words: str) -> None:
    server = FakeServer()
    server.before = redirecting({"https://example.org/.well-known/jmap": target})
    with pytest.raises(ProtocolError, match=words) as caught:
        await found("example.org", server)
    assert asked(server) == ["https://example.org/.well-known/jmap"]
    assert "geheim" not in str(caught.value)


async def test_redirect_from_loopback_to_loopback_is_followed() -> None:
    server = FakeServer()
    server.before = redirecting(
        {"http://localhost:1/.well-known/jmap": "http://127.0.0.1:2/jmap/session"}
    )
    client = await found("http://localhost:1", server)
    assert client.session.url == "http://127.0.0.1:2/jmap/session"


@pytest.mark.parametrize(("status", "requests"), [(404, 2), (410, 1)])
async def test_not_found_is_an_error_before_credentials_are_sent(
    status: int, requests: int
) -> None:
    server = FakeServer()
    server.before = lambda _: httpx.Response(status)
    with pytest.raises(ServerError, match=r"no JMAP at example.org: \d+ for /.well-known/jmap"):
        await found("example.org", server)
    assert asked(server) == ["https://example.org/.well-known/jmap"] * requests


async def test_after_404_every_request_asks_for_the_version_of_rfc_8621() -> None:
    """James with its default configuration answers nothing else."""
    server = FakeServer(1)

    def before(request: httpx.Request) -> httpx.Response | None:
        if request.headers["accept"].endswith("; jmapVersion=rfc-8621"):
            return None
        return httpx.Response(404)

    server.before = before
    async with connect("example.org", CREDENTIALS, network=server) as client:
        await client.mailboxes()
        assert await client.download_blob("B0") == server.blobs["B0"]
    accepted = [request.headers["accept"].partition(";") for request in server.requests]
    assert [version for _, _, version in accepted] == [""] + [" jmapVersion=rfc-8621"] * 4
    assert [media_type for media_type, _, _ in accepted[2:]] == [
        "application/json",
        "application/json",
        "*/*",
    ]


async def test_other_servers_are_not_asked_for_a_version() -> None:
    server = FakeServer()
    await found("example.org", server)
    assert not any("jmapVersion" in request.headers["accept"] for request in server.requests)


async def test_broken_server_is_reported_soon(autojump_clock: MockClock) -> None:
    server = FakeServer()
    server.before = lambda _: httpx.Response(500, text="out of cheese")
    with pytest.raises(ServerError, match="500 Internal Server Error: out of cheese"):
        await found("example.org", server)
    assert trio.current_time() < 10


async def test_wrong_password_is_reported() -> None:
    server = FakeServer()
    server.before = lambda _: httpx.Response(
        401, headers={"WWW-Authenticate": 'Basic realm="Mail"'}, json={"detail": "Bad password."}
    )
    with pytest.raises(AuthenticationError, match="Bad password") as caught:
        await found("example.org", server)
    assert 'Basic realm="Mail"' in str(caught.value)


async def test_login_page_is_not_a_session() -> None:
    server = FakeServer()
    server.before = lambda _: httpx.Response(200, html="<html><body>Log in\x1b[31m</body></html>")
    with pytest.raises(ProtocolError, match=r"is not JSON .*text/html.*<html>") as caught:
        await found("example.org", server)
    assert "\x1b" not in str(caught.value)


async def test_secret_in_a_response_is_not_shown() -> None:
    credentials = BearerCredentials("fmu1-deadbeef")
    answers = [
        httpx.Response(401, text="unknown token fmu1-deadbeef"),
        httpx.Response(403, headers={"WWW-Authenticate": "Bearer error=fmu1-deadbeef"}),
        httpx.Response(400, json={"detail": "no fmu1-deadbeef"}),
        httpx.Response(200, text="Authorization: Bearer fmu1-deadbeef"),
    ]
    for answer in answers:
        server = FakeServer()

        def before(request: httpx.Request, answer: httpx.Response = answer) -> httpx.Response:
            return answer if "authorization" in request.headers else httpx.Response(401)

        server.before = before
        with pytest.raises(JmapfsError) as caught:
            async with connect("example.org", credentials, network=server):
                pass
        assert "deadbeef" not in str(caught.value)
        assert "…" in str(caught.value)


async def test_user_agent_is_sent() -> None:
    server = FakeServer()
    await found("example.org", server)
    assert all(r.headers["user-agent"].startswith("jmapfs/") for r in server.requests)
