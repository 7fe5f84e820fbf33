"""The session: its URLs, accounts and limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import pytest
from trio.testing import MockClock

from jmapfs.deadline import Deadline
from jmapfs.errors import ConfigError, ProtocolError, UnreachableError
from jmapfs.jmap.client import connect
from jmapfs.jmap.discovery import discover
from jmapfs.jmap.http import Transport
from jmapfs.jmap.login import Login
from jmapfs.jmap.session import Limits, Session, SessionAccount
from tests.jmap.fake import (
    CORE,
    CREDENTIALS,
    MAIL,
    NO_EMAILS,
    SESSION_URL,
    FakeServer,
    session_document,
    with_limits,
)

# ruff: noqa: ARG001 - the fixture sets the clock


async def session_of(url: str = "https://mail.example.org/jmap/session", **changes: Any) -> Session:
    server = FakeServer(session=session_document(**changes))
    server.before = lambda _: httpx.Response(200, json=server.session)
    async with Transport(Login(CREDENTIALS), user_agent="test", network=server) as transport:
        return await discover(url, transport, deadline=Deadline(30))


async def test_relative_urls_are_resolved() -> None:
    session = await session_of()
    assert session.api_url == "https://mail.example.org/jmap/"
    assert session.download_url == (
        "https://mail.example.org/jmap/download/{accountId}/{blobId}/{name}?accept={type}"
    )
    assert session.event_source_url is not None
    assert session.event_source_url.startswith("https://mail.example.org/jmap/events?")
    assert session.origins.keys() == {"https://mail.example.org:443"}


async def test_absolute_urls_are_unchanged() -> None:
    session = await session_of(
        apiUrl="https://api.example.com:8443/jmap/",
        downloadUrl="https://content.example.net/{accountId}/{blobId}/{name}?type={type}",
        eventSourceUrl=None,
    )
    assert session.api_url == "https://api.example.com:8443/jmap/"
    assert session.event_source_url is None
    assert session.origins.keys() == {
        "https://mail.example.org:443",
        "https://api.example.com:8443",
        "https://content.example.net:443",
    }


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://mail.example.org/jmap/", "in the clear"),
        ("http://127.0.0.1/jmap/", "from https:// to http://"),
        ("https://alice:geheim@mail.example.org/jmap/", "password"),
        ("https://{accountId}.example.org/jmap/", "variable in its host"),
        ("https://[::1/", "not a usable URL"),
        ("mailto:alice@example.org", "https://"),
        ("", "empty"),
    ],
)
@pytest.mark.parametrize("name", ["apiUrl", "downloadUrl"])
async def test_unsafe_urls_are_refused(name: str, url: str, words: str) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        await session_of(**{name: url})
    assert name in str(caught.value)
    assert "geheim" not in str(caught.value)


async def test_session_on_loopback_may_name_loopback() -> None:
    session = await session_of("http://127.0.0.1:8080/jmap", apiUrl="http://localhost:8081/jmap/")
    assert session.api_url == "http://localhost:8081/jmap/"


@pytest.mark.parametrize("missing", ["accountId", "blobId"])
async def test_download_url_must_have_the_ids(missing: str) -> None:
    template = "/download/{accountId}/{blobId}/{name}".replace(missing, "other")
    with pytest.raises(ProtocolError, match=rf"downloadUrl.*lacks the variable {{{missing}}}"):
        await session_of(downloadUrl=template)


async def test_origin_is_rewritten_on_request() -> None:
    changes = {
        "apiUrl": "http://backend.internal:8080/jmap/",
        "downloadUrl": "https://backend.internal/jmap/download/{accountId}/{blobId}/{name}",
        "eventSourceUrl": "/jmap/events?types={types}&closeafter={closeafter}&ping={ping}",
    }
    server = FakeServer(session=session_document(**changes))
    server.blobs["B1"] = b"mail"
    redirect = httpx.Response(301, headers={"Location": "http://backend.internal/jmap/session"})

    def before(request: httpx.Request) -> httpx.Response | None:
        assert request.url.host == "mail.example.org"
        assert request.url.port == 8443
        return redirect if request.url.path == "/.well-known/jmap" else None

    server.before = before
    async with connect(
        "mail.example.org:8443", CREDENTIALS, network=server, rewrite_origin=True
    ) as client:
        assert client.session.url == "https://mail.example.org:8443/jmap/session"
        assert client.session.api_url == "https://mail.example.org:8443/jmap/"
        assert client.session.origins == {"https://mail.example.org:8443": ""}
        await client.request(NO_EMAILS)
        assert await client.download_blob("B1") == b"mail"
        # The session is fetched again, and its origin is rewritten again.
        server.session["state"] = "s2"
        await client.request(NO_EMAILS)
        await client.request(NO_EMAILS)
        assert client.session.state == "s2"
        assert client.session.api_url == "https://mail.example.org:8443/jmap/"


@pytest.mark.parametrize("name", ["apiUrl", "downloadUrl"])
async def test_unreachable_origin_of_the_session_is_explained(
    name: str, autojump_clock: MockClock
) -> None:
    url = "https://backend.internal:8443/jmap/download/{accountId}/{blobId}"
    server = FakeServer(session=session_document(**{name: url}))

    def before(request: httpx.Request) -> httpx.Response | None:
        if request.url.host == "backend.internal":
            raise httpx.ConnectError("no route to host")
        return None

    server.before = before
    words = rf"the session's {name} names backend.internal:8443; .*rewrite_origin = true"
    async with connect("mail.example.org", CREDENTIALS, network=server) as client:
        ask: Callable[[], Awaitable[object]] = (
            partial(client.request, NO_EMAILS)
            if name == "apiUrl"
            else partial(client.download_blob, "B1")
        )
        with pytest.raises(UnreachableError, match=words):
            await ask()


async def test_unreachable_target_of_a_redirect_is_explained(autojump_clock: MockClock) -> None:
    server = FakeServer()
    redirect = httpx.Response(307, headers={"Location": "https://backend.internal/jmap/session"})

    def before(request: httpx.Request) -> httpx.Response:
        if request.url.host == "backend.internal":
            raise httpx.ConnectError("no route to host")
        return redirect

    server.before = before
    words = r"a redirect of mail\.example\.org names backend\.internal; .*rewrite_origin = true"
    with pytest.raises(UnreachableError, match=words):
        async with connect("mail.example.org", CREDENTIALS, network=server):
            pass


async def test_limits_are_decoded() -> None:
    session = await session_of()
    assert session.limits == Limits(500, 16, 4, 1_000_000)


@pytest.mark.parametrize("core", [None, {}, {"maxObjectsInGet": None}])
async def test_missing_limits_have_defaults(core: object) -> None:
    assert (await session_of(capabilities={CORE: core, MAIL: {}})).limits == Limits()


async def test_limits_are_at_least_one() -> None:
    document = with_limits(
        maxObjectsInGet=0, maxCallsInRequest=-1, maxConcurrentRequests=0, maxSizeRequest=0
    )
    session = await session_of(capabilities=document["capabilities"])
    assert session.limits == Limits(1, 1, 1, 1)


async def test_primary_account_is_selected() -> None:
    session = await session_of()
    assert session.mail_account() == SessionAccount(
        id="A1", name="alice", is_personal=True, is_read_only=False, capabilities={}
    )


@pytest.mark.parametrize(("selection", "id_"), [("A2", "A2"), ("shared", "A2"), ("ALICE", "A1")])
async def test_account_is_selected_by_id_or_name(selection: str, id_: str) -> None:
    session = await session_of()
    assert session.mail_account(selection).id == id_


async def test_error_for_an_unknown_account_lists_the_accounts() -> None:
    session = await session_of()
    with pytest.raises(
        ConfigError, match=r"no account bob; there are: A1 \(alice\), A2 \(shared\)"
    ):
        session.mail_account("bob")


async def test_ambiguous_name_is_refused() -> None:
    session = await session_of(accounts={"A1": {"name": "x"}, "A2": {"name": "x"}})
    with pytest.raises(ConfigError, match="several accounts"):
        session.mail_account("x")


@pytest.mark.parametrize("primary", [{}, {MAIL: None}, {CORE: "A1"}, {MAIL: "A9"}, None])
async def test_only_account_with_mail_is_used_without_a_primary_one(
    primary: dict[str, str | None] | None,
) -> None:
    contacts = {"name": "list", "accountCapabilities": {"urn:ietf:params:jmap:contacts": {}}}
    mail = {"name": "alice", "accountCapabilities": {MAIL: {}}}
    session = await session_of(accounts={"A1": contacts, "A2": mail}, primaryAccounts=primary)
    assert session.mail_account().id == "A2"
    assert [account.id for account in session.mail_accounts()] == ["A2"]


async def test_missing_primary_account_is_an_error() -> None:
    session = await session_of(primaryAccounts={CORE: "A1", MAIL: None})
    with pytest.raises(ConfigError, match="choose one: A1"):
        session.mail_account()


async def test_primary_account_must_exist() -> None:
    session = await session_of(primaryAccounts={MAIL: "A9"})
    with pytest.raises(ProtocolError, match="A9"):
        session.mail_account()


async def test_server_without_mail_is_an_error() -> None:
    session = await session_of(
        capabilities={CORE: {}, "urn:ietf:params:jmap:contacts": {}}, primaryAccounts={}
    )
    with pytest.raises(ProtocolError, match="supports JMAP, but not for mail"):
        session.mail_account()


@pytest.mark.parametrize("missing", ["username", "state", "accounts", "primaryAccounts"])
async def test_properties_may_be_missing_or_null(missing: str) -> None:
    accounts: dict[str, Any] = {"accounts": {"A1": {}}} if missing != "accounts" else {}
    for changes in ({missing: None}, {}):
        document = session_document(**accounts, **changes)
        if not changes:
            del document[missing]
        server = FakeServer(session=document)
        account = None if missing not in {"accounts", "primaryAccounts"} else "A1"
        try:
            async with connect("mail.example.org", CREDENTIALS, account=account, network=server):
                pass
        except ConfigError:
            assert missing == "accounts"


ODD_VALUES: list[Any] = [None, 5, "x", [], {}, 1.5, 10**30, [{}], {"x": 5}]


@pytest.mark.parametrize("name", ["apiUrl", "downloadUrl"])
async def test_unusable_url_of_the_session_is_named(name: str) -> None:
    with pytest.raises(ProtocolError, match=f"session of .* is not valid: {name} is not usable: 5"):
        await session_of(SESSION_URL, **{name: 5})
    with pytest.raises(ProtocolError, match=f"is not valid: the server sends no {name}"):
        await session_of(SESSION_URL, **{name: None})


@pytest.mark.parametrize("value", [*ODD_VALUES, "http://mail.example.org/", "https://[::1/"])
async def test_session_with_an_unusable_event_source_has_none(value: object) -> None:
    session = await session_of(eventSourceUrl=value)
    assert session.event_source_url in {None, "https://mail.example.org/jmap/x"}
    assert session.origins.keys() == {"https://mail.example.org:443"}


@pytest.mark.parametrize("value", ODD_VALUES)
@pytest.mark.parametrize("name", ["username", "state", "capabilities", "primaryAccounts"])
async def test_odd_property_of_a_session_gets_a_default(name: str, value: Any) -> None:
    only = {"A1": {"name": "alice", "accountCapabilities": {MAIL: {}}}}
    session = await session_of(SESSION_URL, accounts=only, **{name: value})
    assert session.mail_account().id == "A1"
    plain = await session_of(accounts=only)
    assert session.api_url == plain.api_url
    changed = value if value == "x" else ""
    assert session.username == (changed if name == "username" else "alice")
    assert session.state == (changed if name == "state" else "s1")
    assert session.limits == (Limits() if name == "capabilities" else plain.limits)


@pytest.mark.parametrize("value", [None, 5, "x", [], {}, 1.5, 10**30, [{}]])
async def test_primary_account_is_used_without_a_list_of_accounts(value: object) -> None:
    session = await session_of(accounts=value)
    assert [account.id for account in session.mail_accounts()] == ["A1"]
    assert session.mail_account().id == "A1"


@pytest.mark.parametrize("value", ODD_VALUES)
async def test_odd_account_has_defaults(value: object) -> None:
    session = await session_of(accounts={"A1": value})
    assert session.mail_account() == SessionAccount("A1", "", True, False, {})  # noqa: FBT003
    for name in ("name", "isPersonal", "isReadOnly", "accountCapabilities"):
        account = (await session_of(accounts={"A1": {name: value}})).mail_account()
        assert (account.id, account.is_personal, account.is_read_only) == ("A1", True, False)
        assert account.name == ("x" if (name, value) == ("name", "x") else "")


@pytest.mark.parametrize("value", [None, "x", [], {}, 1.5, 10**30])
async def test_odd_limit_has_its_default(value: object) -> None:
    for name in ("maxObjectsInGet", "maxCallsInRequest", "maxSizeRequest"):
        session = await session_of(capabilities={CORE: {name: value}, MAIL: value})
        assert session.limits == Limits()
    session = await session_of(capabilities={CORE: {"maxObjectsInGet": 100.0}, MAIL: {}})
    assert session.limits == Limits(max_objects_in_get=100)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("https://cyrusimap.org/ns/jmap/mail", True),
        ("https://www.fastmail.com/dev/maskedemail", True),
        ("https://fastmail.com.example.org/", False),
        ("https://[broken", False),
        ("urn:ietf:params:jmap:blob", False),
    ],
)
async def test_blob_ids_of_cyrus_contain_the_sha1(capability: str, *, expected: bool) -> None:
    session = await session_of(capabilities={CORE: {}, MAIL: {}, capability: {}})
    assert session.blob_ids_are_sha1 is expected
