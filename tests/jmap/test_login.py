"""Secrets that change, and secrets that are wrong: when they are read, and when they are sent."""

from __future__ import annotations

import threading

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.deadline import Deadline
from jmapfs.errors import AuthenticationError, ConfigError, ForbiddenError
from jmapfs.jmap.client import connect
from jmapfs.jmap.credentials import BearerCredentials, Credentials
from jmapfs.jmap.login import Login
from jmapfs.protection import redact
from tests.jmap.fake import NO_EMAILS, SESSION_URL, FakeServer

# ruff: noqa: ARG001 - the fixture sets the clock

OLD, NEW = "old-secret-of-alice", "new-secret-of-alice"


class Server(FakeServer):
    """Accepts one token; records when and with which tokens it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.token = OLD
        self.status = 401
        self.detail = "no"
        self.sent: list[tuple[float, str]] = []
        self.before = self.check

    def check(self, request: httpx.Request) -> httpx.Response | None:
        authorization = request.headers.get("authorization")
        if authorization is None:
            return None
        token = authorization.removeprefix("Bearer ")
        self.sent.append((trio.current_time(), token))
        if token == self.token:
            return None
        return httpx.Response(self.status, json={"detail": f"{self.detail}: {token}"})

    @property
    def tokens(self) -> list[str]:
        return [token for _, token in self.sent]

    def refused_at(self, token: str = OLD) -> list[float]:
        """Return when a token was sent that is not accepted now."""
        return [time for time, sent in self.sent if sent == token != self.token]


class Source:
    """Where a secret is stored: returns the token, and counts how often it is read."""

    def __init__(self, token: str = OLD) -> None:
        self.token = token
        self.reads = 0
        self.error = ""

    def read(self) -> Credentials:
        self.reads += 1
        if self.error:
            raise ConfigError(self.error)
        return BearerCredentials(self.token)

    def login(self, *, quick: bool = False) -> Login:
        return Login(BearerCredentials(self.token), self.read, quick=quick)


async def try_often(server: Server, login: Login, seconds: float, every: float = 10.0) -> None:
    """Connect again and again, as a mount that is woken all the time."""
    end = trio.current_time() + seconds
    while trio.current_time() < end:
        with pytest.raises(AuthenticationError):
            async with connect(SESSION_URL, login, network=server):
                pass
        await trio.sleep(every)


@pytest.fixture
def clock() -> MockClock:
    """Simulated time that stands still while a thread reads a secret."""
    return MockClock(autojump_threshold=0.02)


async def test_new_secret_is_used_at_once(clock: MockClock) -> None:
    server, source = Server(), Source()
    async with connect(SESSION_URL, source.login(), network=server) as client:
        server.token = source.token = NEW
        await client.request(NO_EMAILS)
        assert server.tokens[-2:] == [OLD, NEW]
        await client.request(NO_EMAILS)
        assert server.tokens[-2:] == [NEW, NEW]
    assert source.reads == 1


async def test_new_secret_is_used_for_a_download(clock: MockClock) -> None:
    server, source = Server(), Source()
    server.blobs["B1"] = b"mail"
    async with connect(SESSION_URL, source.login(), network=server) as client:
        server.token = source.token = NEW
        assert await client.download_blob("B1") == b"mail"


async def test_request_is_repeated_only_once(clock: MockClock) -> None:
    server, source = Server(), Source()
    async with connect(SESSION_URL, source.login(), network=server) as client:
        server.token, source.token = "neither", NEW
        server.sent.clear()
        with pytest.raises(AuthenticationError):
            await client.request(NO_EMAILS)
        assert server.tokens == [OLD, NEW]
        assert source.reads == 2


async def test_refused_secret_is_not_sent_again(clock: MockClock) -> None:
    server, source = Server(), Source()
    async with connect(SESSION_URL, source.login(), network=server) as client:
        server.token = NEW
        server.sent.clear()
        for _ in range(20):
            with pytest.raises(AuthenticationError, match="does not accept the credentials"):
                await client.request(NO_EMAILS)
        assert server.tokens == [OLD]
        assert source.reads == 1


async def test_refused_secret_is_sent_after_5_15_and_then_60_minutes(
    autojump_clock: MockClock,
) -> None:
    server = Server()
    server.token = NEW
    start = trio.current_time()
    await try_often(server, Login(BearerCredentials(OLD)), 4 * 3600)
    sent = [round((time - start) / 60) for time in server.refused_at()]
    assert sent == [0, 5, 20, 80, 140, 200]
    # The server also gets no other requests between these times.
    assert len(server.requests) == 2 * len(sent)


async def test_command_is_not_run_during_the_pause(clock: MockClock) -> None:
    server, source = Server(), Source()
    server.token = NEW
    await try_often(server, source.login(), 295)
    assert source.reads == 1


async def test_stale_password_is_sent_twice_in_ten_minutes(autojump_clock: MockClock) -> None:
    server = Server()
    server.token = NEW
    await try_often(server, Login(BearerCredentials(OLD)), 600, every=0.5)
    assert len(server.refused_at()) == 2


async def test_new_secret_in_a_file_is_found_during_the_pause(clock: MockClock) -> None:
    server, source = Server(), Source()
    server.token = NEW
    login = source.login(quick=True)
    await try_often(server, login, 60)
    source.token = NEW
    async with connect(SESSION_URL, login, network=server) as client:
        await client.request(NO_EMAILS)
    assert server.tokens.count(OLD) == 1


async def test_user_can_have_the_secret_sent_now(clock: MockClock) -> None:
    server, source = Server(), Source()
    server.token = NEW
    login = source.login()
    await try_often(server, login, 60)
    server.token = OLD
    with pytest.raises(
        AuthenticationError, match=r"sent again at \d\d:\d\d UTC, or by jmapfs sync"
    ):
        async with connect(SESSION_URL, login, network=server):
            pass
    login.retry_now()
    async with connect(SESSION_URL, login, network=server) as client:
        await client.request(NO_EMAILS)


async def test_requests_in_flight_count_as_one_refusal(clock: MockClock) -> None:
    server, source = Server(), Source()
    async with connect(SESSION_URL, source.login(), network=server) as client:
        server.token = NEW
        server.delay = 1.0
        server.sent.clear()

        async def ask() -> None:
            with pytest.raises(AuthenticationError):
                await client.request(NO_EMAILS)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
    # The server allows four requests at a time. The others are not sent.
    assert server.tokens == [OLD] * 4
    assert source.reads == 1


async def test_accounts_of_one_user_try_one_after_another(clock: MockClock) -> None:
    server, source = Server(), Source()
    server.token = NEW
    login = source.login()
    await try_often(server, login, 5)
    server.delay = 1.0
    login.retry_now()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(try_often, server, login, 5)
    assert len(server.refused_at()) == 2


async def test_secret_that_is_accepted_now_and_then_gets_long_pauses(
    autojump_clock: MockClock,
) -> None:
    server = Server()
    login = Login(BearerCredentials(OLD))
    start, refused = trio.current_time(), []
    while trio.current_time() < start + 3 * 3600:
        server.token = OLD
        try:
            async with connect(SESSION_URL, login, network=server) as client:
                server.token = NEW
                with pytest.raises(AuthenticationError):
                    await client.request(NO_EMAILS)
                refused.append(round((trio.current_time() - start) / 60))
        except AuthenticationError:
            pass
        await trio.sleep(30)
    assert refused == [0, 5, 20, 80, 140]


async def test_source_that_fails_is_named(clock: MockClock) -> None:
    server, source = Server(), Source()
    async with connect(SESSION_URL, source.login(), network=server) as client:
        server.token, source.error = NEW, "[home] token_command: exit code 1"
        with pytest.raises(AuthenticationError, match="token_command: exit code 1") as caught:
            await client.request(NO_EMAILS)
        with pytest.raises(AuthenticationError, match="token_command: exit code 1"):
            await client.request(NO_EMAILS)
        assert OLD not in str(caught.value)


async def test_replaced_secret_is_not_shown(clock: MockClock) -> None:
    server, source = Server(), Source()
    async with connect(SESSION_URL, source.login(), network=server) as client:
        server.token, source.token = "neither", NEW
        with pytest.raises(AuthenticationError) as caught:
            await client.request(NO_EMAILS)
        server.before = lambda _: httpx.Response(400, text=f"{OLD} {NEW}")
        assert OLD not in str(caught.value)
        assert NEW not in str(caught.value)
        assert redact(f"{OLD} {NEW}") == "… …"


async def test_slow_source_does_not_outlast_the_deadline() -> None:
    server, release = Server(), threading.Event()

    def read() -> Credentials:
        release.wait(30)
        return BearerCredentials(OLD)

    login = Login(BearerCredentials(OLD), read)
    try:
        async with connect(SESSION_URL, login, network=server) as client:
            server.token = NEW
            server.sent.clear()
            with trio.fail_after(5):
                for _ in range(3):
                    with pytest.raises(AuthenticationError):
                        await client.request(NO_EMAILS, deadline=Deadline(0.2))
            assert server.tokens == [OLD]
    finally:
        release.set()


@pytest.mark.parametrize("detail", ["Token lacks scope", "too many logins", "Forbidden"])
async def test_forbidden_says_nothing_about_the_secret(detail: str, clock: MockClock) -> None:
    server, source = Server(), Source()
    async with connect(SESSION_URL, source.login(), network=server) as client:
        server.token, server.status, server.detail = NEW, 403, detail
        for _ in range(2):
            with pytest.raises(ForbiddenError, match=f"does not permit this: 403.*{detail}"):
                await client.request(NO_EMAILS)
        server.token = OLD
        await client.request(NO_EMAILS)
    assert source.reads == 0


@pytest.mark.parametrize(
    "detail", ["Wrong password", "invalid user name or password", "Password incorrect", "bad login"]
)
async def test_server_may_say_with_403_that_the_secret_is_wrong(
    detail: str, clock: MockClock
) -> None:
    server, source = Server(), Source()
    async with connect(SESSION_URL, source.login(), network=server) as client:
        server.token, server.status, server.detail = NEW, 403, detail
        with pytest.raises(AuthenticationError, match="does not accept the credentials: 403"):
            await client.request(NO_EMAILS)
        source.token = NEW
        assert source.reads == 1
