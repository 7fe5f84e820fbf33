"""What all requests share: budget, cooldown, retries, deadlines, and the use of credentials."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.deadline import Deadline
from jmapfs.errors import (
    AuthenticationError,
    DeadlineError,
    JmapfsError,
    ProtocolError,
    RequestError,
    UnreachableError,
)
from jmapfs.jmap.client import connect
from jmapfs.jmap.http import Traffic, Transport
from jmapfs.jmap.login import Login
from jmapfs.jmap.response import HttpRequest, HttpResponse
from jmapfs.jmap.retry import back_off
from tests.jmap.fake import (
    CREDENTIALS,
    LIMIT,
    NO_EMAILS,
    SESSION_URL,
    Chunks,
    FakeServer,
    opened,
    with_limits,
)

# ruff: noqa: ARG001 - the fixture sets the clock


URL = "https://mail.example.org/x"


class Script(httpx.AsyncBaseTransport):
    """Returns these responses in turn, then the last one again; records when it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.times: list[float] = []

    async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, stream=answer.stream)

    @property
    def pauses(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


@asynccontextmanager
async def transport_to(server: httpx.AsyncBaseTransport) -> AsyncIterator[Transport]:
    async with Transport(Login(CREDENTIALS), user_agent="test", network=server) as transport:
        transport.trust({"https://mail.example.org:443"})
        yield transport


async def fetch(
    *answers: httpx.Response | Exception, deadline: float = 30.0
) -> tuple[HttpResponse, Script]:
    script = Script(*answers)
    async with transport_to(script) as transport:
        request = HttpRequest(method="GET", url=URL)
        answer = await transport.fetch(request, deadline=Deadline(deadline))
        assert transport.traffic == Traffic(requests=len(script.times))
        return answer, script


async def failing(
    *answers: httpx.Response | Exception, deadline: float = 30.0
) -> tuple[JmapfsError, Script, float]:
    script = Script(*answers)
    started = trio.current_time()
    async with transport_to(script) as transport:
        with pytest.raises(JmapfsError) as caught:
            await transport.fetch(HttpRequest(method="GET", url=URL), deadline=Deadline(deadline))
    assert "\n" not in str(caught.value)
    return caught.value, script, trio.current_time() - started


OK = httpx.Response(200, text="fine")


def connect_error(cause: Exception) -> httpx.ConnectError:
    """Return an error like those of httpx, with the reason as the cause of its cause."""
    middle = OSError("all attempts to connect failed")
    middle.__cause__ = ExceptionGroup("multiple", [cause])
    error = httpx.ConnectError("failed")
    error.__cause__ = middle
    return error


async def test_fetch_returns_the_response(autojump_clock: MockClock) -> None:
    answer, _ = await fetch(OK)
    assert (answer.status, answer.content, answer.url) == (200, b"fine", URL)


@pytest.mark.parametrize(
    ("url", "coding"),
    [
        (URL, "gzip"),
        ("HTTPS://mail.example.org/x", "gzip"),
        ("http://127.0.0.1/x", "identity"),
        ("HTTP://localhost:8080/x", "identity"),
    ],
)
async def test_only_responses_from_other_machines_are_compressed(url: str, coding: str) -> None:
    server = FakeServer()
    async with transport_to(server) as transport:
        request = HttpRequest(method="GET", url=url, authenticated=False, expected=frozenset({401}))
        await transport.fetch(request, deadline=Deadline(30))
        asked = HttpRequest(
            method="GET",
            url=url,
            headers={"Accept-Encoding": "br"},
            authenticated=False,
            expected=frozenset({401}),
        )
        await transport.fetch(asked, deadline=Deadline(30))
    assert [r.headers.get_list("accept-encoding") for r in server.requests] == [[coding], ["br"]]


# --- Credentials and redirects


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example.org/x",
        "https://mail.example.org:8443/x",
        "https://mail.example.org.evil.example/x",
        "http://127.0.0.1/x",
        "http://mail.example.org/x",
        "https://alice@mail.example.org/x",
    ],
)
async def test_credentials_go_to_no_other_origin(url: str, autojump_clock: MockClock) -> None:
    script = Script(OK)
    async with transport_to(script) as transport:
        with pytest.raises(ProtocolError):
            await transport.fetch(HttpRequest(method="GET", url=url), deadline=Deadline(30))
    assert not script.times


async def test_unauthenticated_request_has_no_credentials(autojump_clock: MockClock) -> None:
    server = FakeServer()
    async with transport_to(server) as transport:
        request = HttpRequest(
            method="GET",
            url="https://other.example.org/",
            authenticated=False,
            expected=frozenset({401}),
        )
        await transport.fetch(request, deadline=Deadline(30))
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_refused(status: int, autojump_clock: MockClock) -> None:
    redirect = httpx.Response(status, headers={"Location": "https://mail.example.org/y"})
    error, script, _ = await failing(redirect)
    assert isinstance(error, ProtocolError)
    assert "redirects" in str(error)
    assert "https://mail.example.org/y" in str(error)
    assert len(script.times) == 1


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://login.example.net/sso?token=hidden#hidden", "to https://login.example.net/sso;"),
        ("https://alice:hidden@login.example.net/", "to https://login.example.net/;"),
        ("/login", "to /login;"),
        ("", "to an unnamed place;"),
    ],
)
async def test_redirect_that_is_not_followed_names_its_target(
    location: str, shown: str, autojump_clock: MockClock
) -> None:
    error, _, _ = await failing(httpx.Response(302, headers={"Location": location}))
    assert shown in str(error)
    assert "hidden" not in str(error)


# --- Errors quote the server


@pytest.mark.parametrize("status", [401, 403])
async def test_rejected_credentials_quote_the_server(
    status: int, autojump_clock: MockClock
) -> None:
    page = (
        "<html><head><title>x</title><style>p{}</style></head><p>Wrong&nbsp;scope &amp; co</html>"
    )
    answers = {
        "Token lacks scope": httpx.Response(status, json={"detail": "Token lacks scope"}),
        "Forbidden here": httpx.Response(status, json={"title": "Forbidden here"}),
        "Wrong scope & co": httpx.Response(status, html=page),
        "plain words": httpx.Response(status, text="plain\n words\x1b[31m"),
        'Bearer realm="x"': httpx.Response(
            status, headers={"WWW-Authenticate": 'Bearer realm="x"'}
        ),
    }
    for words, answer in answers.items():
        error, script, _ = await failing(answer)
        assert isinstance(error, AuthenticationError)
        assert words in str(error)
        assert "mail.example.org" in str(error)
        assert "\x1b" not in str(error)
        assert len(script.times) == 1


async def test_of_many_challenges_the_schemes_are_shown(autojump_clock: MockClock) -> None:
    # The answer of Cyrus to a wrong password.
    page = (
        "<html><head><title>401 Unauthorized</title></head><body><h1>Unauthorized</h1>"
        "<p>Authentication failed</p><hr><address>Cyrus-HTTP/3.6.1 Cyrus-SASL/2.1.28</address>"
    )
    challenges = (
        'SCRAM-SHA-1 realm="a, b"',
        'Digest nonce="hUVd=",realm="x \\"y",qop="auth",charset=utf-8, algorithm=md5-sess',
        "NTLM",
        'Basic realm="x"',
    )
    fields = [("WWW-Authenticate", one) for one in challenges]
    error, _, _ = await failing(httpx.Response(401, headers=fields, html=page))
    assert str(error).endswith(
        "401 Unauthorized: Unauthorized Authentication failed"
        " (it asks for: SCRAM-SHA-1, Digest, NTLM, Basic)"
    )


async def test_problem_report_is_quoted(autojump_clock: MockClock) -> None:
    problem = {"type": "urn:ietf:params:jmap:error:notRequest", "detail": "no using"}
    error, _, _ = await failing(httpx.Response(400, json=problem))
    assert isinstance(error, RequestError)
    assert (error.status, error.kind) == (400, "urn:ietf:params:jmap:error:notRequest")
    assert "no using" in str(error)


async def test_lasting_limit_is_not_retried(autojump_clock: MockClock) -> None:
    problem = {"type": LIMIT, "limit": "maxSizeRequest"}
    error, script, _ = await failing(httpx.Response(400, json=problem))
    assert isinstance(error, RequestError)
    assert (error.kind, error.limit) == (LIMIT, "maxSizeRequest")
    assert len(script.times) == 1


@pytest.mark.parametrize("limit", [{"limit": "maxConcurrentRequests"}, {}])
async def test_temporary_limit_is_retried(limit: dict[str, str], autojump_clock: MockClock) -> None:
    problem = httpx.Response(400, json={"type": LIMIT, **limit})
    answer, script = await fetch(problem, OK)
    assert answer.content == b"fine"
    assert script.pauses[0] >= 0.25


@pytest.mark.parametrize("status", [201, 204, 206, 304, 404, 418, 599])
async def test_other_statuses_are_request_errors(status: int, autojump_clock: MockClock) -> None:
    error, _, _ = await failing(httpx.Response(status))
    assert isinstance(error, RequestError)
    assert error.status == status


async def test_error_response_that_breaks_off_is_quoted(autojump_clock: MockClock) -> None:
    body = Chunks(b"no such", httpx.ReadError("broken"))
    error, _, _ = await failing(httpx.Response(400, stream=body))
    assert "no such" in str(error)


# --- Retries


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_respected(status: int, autojump_clock: MockClock) -> None:
    _, script = await fetch(busy(7, status), OK)
    assert script.pauses == [7.0]


async def test_all_requests_wait_for_retry_after(autojump_clock: MockClock) -> None:
    script = Script(httpx.Response(429, headers={"Retry-After": "7"}), OK)
    async with transport_to(script) as transport, trio.open_nursery() as nursery:
        deadline = Deadline(30)

        async def ask() -> None:
            await transport.fetch(HttpRequest(method="GET", url=URL), deadline=deadline)

        nursery.start_soon(ask)
        await trio.sleep(1)
        nursery.start_soon(ask)
        nursery.start_soon(ask)
    assert script.pauses == [7.0, 0.0, 0.0]


async def test_requests_waiting_for_the_budget_wait_for_retry_after(
    autojump_clock: MockClock,
) -> None:
    script = Script(busy(7), busy(7), OK)
    async with transport_to(script) as transport, trio.open_nursery() as nursery:
        request = HttpRequest(method="GET", url=URL)
        for _ in range(5):
            nursery.start_soon(partial(transport.fetch, request, deadline=Deadline(30)))
    assert script.pauses == [0.0, 7.0, 0.0, 0.0, 0.0, 0.0]


async def test_retry_after_beyond_the_deadline_fails_at_once(autojump_clock: MockClock) -> None:
    answer = httpx.Response(429, headers={"Retry-After": "40"}, text="one mail a minute")
    error, script, took = await failing(answer)
    assert isinstance(error, UnreachableError)
    assert "one mail a minute" in str(error)
    assert len(script.times) == 1
    assert took < 1


def busy(seconds: object, status: int = 429) -> httpx.Response:
    return httpx.Response(status, headers={"Retry-After": str(seconds)})


@pytest.mark.parametrize(
    ("seconds", "words"), [(90, "90 s"), (3600, "60 min"), (7200, "2 h"), (86_400 * 9, "24 h")]
)
async def test_error_names_the_time_that_the_server_asks_for(
    seconds: int, words: str, autojump_clock: MockClock
) -> None:
    error, script, _ = await failing(busy(seconds))
    assert f"it asks to wait {words}" in str(error)
    assert len(script.times) == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("place", ["discovery", "login", "listing"])
async def test_session_and_listing_wait_as_the_server_asks(
    place: str, status: int, autojump_clock: MockClock
) -> None:
    server, shown = FakeServer(3), list[str]()
    answers = [busy(50, status)]

    def before(request: httpx.Request) -> httpx.Response | None:
        anonymous = "authorization" not in request.headers
        here = {"discovery": anonymous, "login": not anonymous, "listing": request.method == "POST"}
        return answers.pop() if answers and here[place] else None

    server.before = before
    started = trio.current_time()
    async with connect(
        SESSION_URL,
        CREDENTIALS,
        network=server,
        on_wait=lambda text, _: shown.append(text),
        longest_wait=60,
    ) as client:
        assert await client.email_state() == "e1"
    assert not answers
    assert trio.current_time() - started == pytest.approx(50)
    assert shown == ["mail.example.org asks to wait 50 s"]


async def test_a_busy_session_url_does_not_stop_requests(autojump_clock: MockClock) -> None:
    server = FakeServer(3)
    async with opened(server) as client:
        server.session["state"] = "s2"
        await client.email_state()
        answers = [busy(50)]
        server.before = lambda request: (
            answers.pop() if answers and request.method == "GET" else None
        )
        server.requests.clear()
        started = trio.current_time()
        for _ in range(5):
            await client.email_state()
            await trio.sleep(1)
        assert trio.current_time() - started == pytest.approx(5)
        assert server.paths == ["/jmap/session", *["/jmap/"] * 5]
        assert client.session.state == "s1"
        await trio.sleep(60)
        await client.email_state()
        assert client.session.state == "s2"


async def test_wait_is_bounded(autojump_clock: MockClock) -> None:
    server = FakeServer()
    server.before = lambda _: busy(61)
    started = trio.current_time()
    with pytest.raises(UnreachableError, match="it asks to wait 61 s"):
        async with connect(SESSION_URL, CREDENTIALS, network=server, longest_wait=60):
            pass
    assert trio.current_time() - started < 1
    # Many short pauses are bounded too.
    server.before = lambda _: busy(20)
    with pytest.raises(UnreachableError, match="it asks to wait 20 s"):
        async with connect(SESSION_URL, CREDENTIALS, network=server, longest_wait=60):
            pass
    assert trio.current_time() - started <= 62


@pytest.mark.parametrize(("seconds", "lines"), [(2, 0), (4, 1), (25, 1)])
async def test_wait_is_shown_once_after_three_seconds(
    seconds: int, lines: int, autojump_clock: MockClock
) -> None:
    shown: list[tuple[float, str, float]] = []
    server = FakeServer(2)
    async with opened(
        server, on_wait=lambda text, left: shown.append((trio.current_time(), text, left))
    ) as client:
        answers = [busy(seconds)]
        server.before = lambda _: answers.pop() if answers else None
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(client.email_state)
                nursery.start_soon(client.download_blob, f"B{number % 2}")
    assert [(round(when - started, 3), text, round(left, 3)) for when, text, left in shown] == [
        (3.0, f"mail.example.org asks to wait {seconds} s", seconds - 3)
    ] * lines


async def test_request_with_a_deadline_does_not_wait_longer(autojump_clock: MockClock) -> None:
    server = FakeServer()
    async with opened(server) as client:
        server.before = lambda _: busy(20)
        started = trio.current_time()
        with pytest.raises(UnreachableError, match="asks to wait 20 s"):
            await client.request(NO_EMAILS, deadline=Deadline(10))
        assert trio.current_time() - started < 1


async def test_busy_server_is_asked_with_back_off_until_the_deadline(
    autojump_clock: MockClock,
) -> None:
    error, script, took = await failing(httpx.Response(503, text="maintenance"))
    assert isinstance(error, UnreachableError)
    assert "maintenance" in str(error)
    assert took <= 30
    assert len(script.times) > 4
    assert all(0.25 <= pause <= 15 for pause in script.pauses)
    assert script.pauses[-1] > 2 * script.pauses[0]


async def test_retry_after_zero_causes_no_busy_loop(autojump_clock: MockClock) -> None:
    _, script, _ = await failing(httpx.Response(429, headers={"Retry-After": "0"}))
    assert len(script.times) < 200
    assert min(script.pauses) >= 0.25


async def test_requests_rejected_together_are_one_failure(autojump_clock: MockClock) -> None:
    server = FakeServer()
    server.delay = 1.0
    async with transport_to(server) as transport, trio.open_nursery() as nursery:
        transport.set_limits({"https://mail.example.org:443": ""}, 8)
        until = trio.current_time() + 0.9

        def before(_: httpx.Request) -> httpx.Response:
            return httpx.Response(429 if trio.current_time() <= until + 0.2 else 200)

        server.before = before
        request = HttpRequest(method="GET", url=URL)
        for _ in range(8):
            nursery.start_soon(partial(transport.fetch, request, deadline=Deadline(60.9)))
    assert len(server.requests) == 16
    assert trio.current_time() - until < 3


@pytest.mark.parametrize("status", [408, 500, 502, 504])
async def test_broken_server_is_asked_four_times(status: int, autojump_clock: MockClock) -> None:
    error, script, took = await failing(httpx.Response(status, text="oops"))
    assert isinstance(error, RequestError)
    assert error.status == status
    assert "oops" in str(error)
    assert len(script.times) == 4
    assert took < 10


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (connect_error(ConnectionRefusedError(111, "refused")), "refuses the connection"),
        (connect_error(socket.gaierror(-2, "Name or service not known")), "Name or service"),
        (connect_error(ssl.SSLEOFError(8, "EOF occurred")), "TLS"),
        (connect_error(OSError(101, "Network is unreachable")), "Network is unreachable"),
        (httpx.ReadError("reset"), "broke off: reset"),
        (httpx.RemoteProtocolError("Server disconnected"), "Server disconnected"),
        (httpx.ConnectTimeout(""), "no answer in time"),
        (httpx.ReadTimeout(""), "silent"),
        (httpx.WriteError(""), "WriteError"),
        (OSError(24, "Too many open files"), "Too many open files"),
    ],
)
async def test_network_failures_are_retried_and_described(
    failure: Exception, words: str, autojump_clock: MockClock
) -> None:
    error, script, took = await failing(failure)
    assert isinstance(error, UnreachableError)
    assert words in str(error)
    assert "mail.example.org" in str(error)
    assert len(script.times) == 4
    assert took < 10
    answer, _ = await fetch(failure, failure, failure, OK)
    assert answer.content == b"fine"


async def test_certificate_is_not_retried(autojump_clock: MockClock) -> None:
    cause = ssl.SSLCertVerificationError(1, "certificate verify failed")
    cause.verify_message = "certificate has expired"
    error, script, _ = await failing(connect_error(cause))
    assert isinstance(error, UnreachableError)
    assert "certificate has expired" in str(error)
    assert len(script.times) == 1


async def test_request_ends_at_the_deadline(autojump_clock: MockClock) -> None:
    server = FakeServer()
    server.delay = 1000
    async with transport_to(server) as transport:
        with pytest.raises(DeadlineError, match=r"mail\.example\.org"):
            await transport.fetch(HttpRequest(method="GET", url=URL), deadline=Deadline(5))
    assert server.in_flight == 0


async def test_silent_server_is_asked_again_within_the_deadline(autojump_clock: MockClock) -> None:
    server = FakeServer()
    server.delay = 1000
    async with transport_to(server) as transport:
        # The last attempt has less time, which is not worth telling.
        with pytest.raises(DeadlineError, match="within 10 s"):
            await transport.fetch(HttpRequest(method="GET", url=URL), deadline=Deadline(25))
    assert len(server.requests) == 3


# --- Bodies


async def test_stalled_body_is_requested_again(autojump_clock: MockClock) -> None:
    stalled = httpx.Response(200, stream=Chunks(b"fi", 1000.0))
    answer, script = await fetch(stalled, OK)
    assert answer.content == b"fine"
    assert 10 <= script.pauses[0] < 12


async def test_slow_body_ends_at_the_deadline(autojump_clock: MockClock) -> None:
    pieces: list[bytes | float] = [b"x", 5.0]
    trickle = Chunks(*pieces * 100)
    error, _, took = await failing(httpx.Response(200, stream=trickle))
    assert isinstance(error, DeadlineError)
    assert took == pytest.approx(30, abs=0.001)
    assert trickle.closed


@pytest.mark.parametrize(
    "stream",
    [Chunks(b"fi"), Chunks(b"fi", httpx.ReadError("reset")), Chunks(), Chunks(b"finefine")],
)
async def test_body_that_breaks_off_is_retried(stream: Chunks, autojump_clock: MockClock) -> None:
    broken = httpx.Response(200, headers={"Content-Length": "4"}, stream=stream)
    error, script, _ = await failing(broken)
    assert isinstance(error, UnreachableError)
    assert "broke off" in str(error)
    assert len(script.times) == 4
    answer, _ = await fetch(broken, OK)
    assert answer.content == b"fine"


async def test_body_that_is_too_large_is_an_error(autojump_clock: MockClock) -> None:
    endless = Chunks(*[b"x" * 2**20] * 20)
    error, script, _ = await failing(httpx.Response(200, stream=endless))
    assert isinstance(error, ProtocolError)
    assert "larger than 8,388,608 bytes" in str(error)
    assert len(script.times) == 1
    assert endless.closed


async def test_size_of_one_response_can_be_bounded(autojump_clock: MockClock) -> None:
    async with transport_to(Script(httpx.Response(200, stream=Chunks(b"x" * 100)))) as transport:
        request, deadline = HttpRequest(method="GET", url=URL), Deadline(30)
        assert (
            await transport.fetch(request, deadline=deadline, largest=100)
        ).content == b"x" * 100
        with pytest.raises(ProtocolError, match="larger than 99 bytes"):
            await transport.fetch(request, deadline=deadline, largest=99)


async def test_broken_compression_is_an_error(autojump_clock: MockClock) -> None:
    headers = {"Content-Encoding": "gzip"}
    error, _, _ = await failing(httpx.Response(200, headers=headers, stream=Chunks(b"not gzip")))
    assert isinstance(error, ProtocolError)
    assert "compression" in str(error)


# --- The budget


async def test_requests_in_flight_are_limited_by_the_server(autojump_clock: MockClock) -> None:
    server = FakeServer(30, session=with_limits(maxConcurrentRequests=3))
    async with opened(server) as client, trio.open_nursery() as nursery:
        server.delay = 1.0
        for number in range(10):
            nursery.start_soon(client.email_state)
            nursery.start_soon(client.download_blob, f"B{number}")
    assert server.most_in_flight == 3


async def test_requests_in_flight_have_a_local_limit(autojump_clock: MockClock) -> None:
    server = FakeServer(session=with_limits(maxConcurrentRequests=1000))
    async with opened(server) as client, trio.open_nursery() as nursery:
        assert client.concurrency == 8
        server.delay = 1.0
        for _ in range(20):
            nursery.start_soon(client.email_state)
    assert server.most_in_flight == 8


async def test_two_requests_are_allowed_before_the_session_is_known(
    autojump_clock: MockClock,
) -> None:
    async with Transport(Login(CREDENTIALS), user_agent="x", network=FakeServer()) as transport:
        assert transport.concurrency == 2


async def test_waiting_for_the_budget_has_a_deadline(autojump_clock: MockClock) -> None:
    server = FakeServer(session=with_limits(maxConcurrentRequests=1))
    async with opened(server) as client, trio.open_nursery() as nursery:
        server.delay = 20.0
        nursery.start_soon(client.email_state)
        await trio.sleep(1)
        with pytest.raises(DeadlineError, match="could not start"):
            await client.request(NO_EMAILS, deadline=Deadline(5))
        nursery.cancel_scope.cancel()


async def test_bytes_of_other_requests_refill_the_time_of_a_waiting_one(
    autojump_clock: MockClock,
) -> None:
    """A slow line is busy for 100 seconds. A trickle would not be a reason to wait."""
    for size, is_busy in (20 * 1024, True), (1, False):
        pieces: list[bytes | float] = [b"x" * size, 1.0]
        async with transport_to(Script(httpx.Response(200, stream=Chunks(*pieces * 100)))) as one:
            one.set_limits({"https://mail.example.org:443": ""}, 1)
            request = HttpRequest(method="GET", url=URL)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(one.fetch, request, deadline=Deadline(200)))
                await trio.sleep(1)
                with trio.move_on_after(150) as scope:
                    if is_busy:
                        await one.fetch(request, deadline=Deadline(30))
                    else:
                        with pytest.raises(DeadlineError, match="could not start"):
                            await one.fetch(request, deadline=Deadline(30))
                assert scope.cancelled_caught == is_busy
                nursery.cancel_scope.cancel()


async def test_cancelled_requests_free_their_place_in_the_budget(autojump_clock: MockClock) -> None:
    server = FakeServer(1, session=with_limits(maxConcurrentRequests=1))
    async with opened(server) as client:
        server.delay = 100.0
        for _ in range(3):
            with trio.move_on_after(1):
                await client.email_state()
        server.delay = 0.0
        assert await client.email_state() == "e1"


# --- Back-off


def test_back_off_grows_to_a_limit() -> None:
    for failures in range(1, 2000, 7):
        assert 0.25 <= back_off(failures) <= 15.0
    assert back_off(1) <= 0.5
    assert back_off(100) >= 7.5
