"""A fault that lasts costs few requests, whatever wakes the follower; in simulated time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.errors import ServerError, StorageError, UnreachableError
from jmapfs.index.writer import IndexWriter
from jmapfs.sync.follower import AccountFollower
from tests.jmap.fake import Arguments, Chunks, FakeServer, RefusedError
from tests.sync.followed_fake import quiet_server, running_follower

# ruff: noqa: ARG001 - the fixture sets the clock

pytestmark = pytest.mark.usefixtures("steady_pauses")

EVENT = b'event: state\ndata: {"changed": {"A1": {"Email": "e"}}}\n\n'
NEVER = 1e6


@dataclass
class Faulty:
    """A server, and what is wrong with it. Its event stream sends `pieces` again and again."""

    server: FakeServer
    monkeypatch: pytest.MonkeyPatch
    statuses: dict[str, int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    pieces: tuple[bytes | float, ...] = (EVENT, 0.2) * 50 + (EVENT, 2) * 1000

    def answer(self, request: httpx.Request) -> httpx.Response | None:
        path = request.url.path
        if "authorization" in request.headers:
            for part, status in self.statuses.items():
                if part in path:
                    return httpx.Response(status, headers=self.headers, json={"detail": "no"})
        if "/events" in path:
            return httpx.Response(
                200,
                headers={"Content-Type": "text/event-stream"},
                stream=Chunks(*self.pieces),
            )
        return None

    def method(self, name: str, answer: Callable[[Arguments], Arguments]) -> None:
        self.server.methods[name] = answer

    def refuse(self, kind: str, *names: str) -> None:
        def answer(_: Arguments) -> Arguments:
            raise RefusedError(kind)

        for name in names:
            self.method(name, answer)

    def new_states(self, name: str) -> None:
        """Answer a method with another state each time."""
        plain, numbers = self.server.methods[name], itertools.count()
        self.method(name, lambda arguments: plain(arguments) | {"state": f"x{next(numbers)}"})


Fault = Callable[[Faulty], None]
"""Makes a server faulty, for ever."""


def nothing(faulty: Faulty) -> None:
    """The server is healthy, but sends five events in a second for ever."""


def all_statuses(status: int, retry_after: str = "") -> Fault:
    def begin(faulty: Faulty) -> None:
        faulty.statuses["/jmap/"] = status
        faulty.headers = {"Retry-After": retry_after} if retry_after else {}

    return begin


def api_status(status: int) -> Fault:
    """The session is fine, but the API is not."""

    def begin(faulty: Faulty) -> None:
        plain = faulty.server.answer

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/jmap/":
                return httpx.Response(status, json={"detail": "no"})
            return plain(request)

        faulty.monkeypatch.setattr(faulty.server, "answer", answer)

    return begin


def garbage(faulty: Faulty) -> None:
    answer = {"nonsense": True, "created": [], "updated": []}
    faulty.method("Email/changes", lambda _: dict(answer))
    faulty.method("Mailbox/changes", lambda _: dict(answer))


def forbidden_changes(faulty: Faulty) -> None:
    faulty.refuse("forbidden", "Email/changes", "Mailbox/changes")


def full_disk(faulty: Faulty) -> None:
    def fail(*_: object) -> None:
        raise StorageError("no space left on the disk")

    faulty.monkeypatch.setattr(IndexWriter, "bad_emails", fail)


def bug(faulty: Faulty) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    faulty.monkeypatch.setattr(IndexWriter, "bad_emails", fail)


def broken_listing(faulty: Faulty) -> None:
    """The changes are not known, and the listing fails in the middle."""
    faulty.refuse("cannotCalculateChanges", "Email/changes")
    faulty.new_states("Email/get")
    plain = faulty.server.methods["Email/get"]

    def email_get(arguments: Arguments) -> Arguments:
        if len(arguments["ids"]) > 0:
            raise RefusedError("forbidden")
        return plain(arguments)

    faulty.method("Email/get", email_get)


def restless_account(faulty: Faulty) -> None:
    """The changes are not known, and the state is another one in each response."""
    faulty.refuse("cannotCalculateChanges", "Email/changes")
    faulty.new_states("Email/get")


def new_state_in_each_listing(faulty: Faulty) -> None:
    """The changes are never known. Each listing has another state."""
    faulty.refuse("cannotCalculateChanges", "Email/changes")
    plain, numbers = faulty.server.methods["Email/query"], itertools.count()
    state = ["x"]

    def email_query(arguments: Arguments) -> Arguments:
        state[0] = f"x{next(numbers)}"
        return plain(arguments)

    faulty.method("Email/query", email_query)
    get = faulty.server.methods["Email/get"]
    faulty.method("Email/get", lambda arguments: get(arguments) | {"state": state[0]})


def endless_changes(faulty: Faulty) -> None:
    numbers = itertools.count()

    def changes(_: Arguments) -> Arguments:
        state = f"x{next(numbers)}"
        return {"newState": state, "hasMoreChanges": True, "created": [], "updated": ["M1"]} | {
            "destroyed": []
        }

    faulty.method("Email/changes", changes)


def endless_mailbox_changes(faulty: Faulty) -> None:
    endless_changes(faulty)
    faulty.method("Mailbox/changes", faulty.server.methods["Email/changes"])


def endless_chain(
    *kinds: str, ids: Callable[[int], Sequence[str]], member: str, is_current: bool
) -> Fault:
    """Return a fault: there are more changes for ever, each time with a new state.

    `ids` returns what the response with this number names. The server returns the objects that it
    has. With `is_current`, it reports its old state if it is asked for the state alone.
    """

    def begin_one(faulty: Faulty, kind: str) -> None:
        numbers = itertools.count()
        state = [""]

        def changes(_: Arguments) -> Arguments:
            number = next(numbers)
            state[0] = f"x{number}"
            lists = {"created": [], "updated": [], "destroyed": [], member: list(ids(number))}
            return {"newState": state[0], "hasMoreChanges": True, **lists}

        faulty.method(f"{kind}/changes", changes)
        if not is_current:
            get = faulty.server.methods[f"{kind}/get"]
            faulty.method(f"{kind}/get", lambda given: get(given) | {"state": state[0]})

    def begin(faulty: Faulty) -> None:
        for kind in kinds:
            begin_one(faulty, kind)

    return begin


def none(_: int) -> Sequence[str]:
    return ()


def invented(number: int) -> Sequence[str]:
    return [f"X{number}-{each}" for each in range(20)]


def known(number: int) -> Sequence[str]:
    return [f"M{number % 12}"]


CHAINS: dict[str, Fault] = {
    f"{' and '.join(kinds)} without end, {ids.__name__} {member}, {is_current}": endless_chain(
        *kinds, ids=ids, member=member, is_current=is_current
    )
    for kinds, ids, member, is_current in (
        (("Email",), none, "updated", True),
        (("Email",), invented, "created", True),
        (("Email",), invented, "destroyed", False),
        (("Email",), known, "updated", False),
        (("Mailbox",), invented, "created", False),
        (("Email", "Mailbox"), invented, "created", True),
    )
}
"""Chains without end: what they name, and whether the server has its old state if asked for it."""


def restless_state(faulty: Faulty) -> None:
    """Each request for the changes has another state, and there are no changes."""
    numbers = itertools.count()

    def changes(_: Arguments) -> Arguments:
        return {"newState": f"x{next(numbers)}", "hasMoreChanges": False} | {
            "created": [],
            "updated": [],
            "destroyed": [],
        }

    for name in ("Email/changes", "Mailbox/changes"):
        faulty.method(name, changes)


def restless_session(faulty: Faulty) -> None:
    numbers = itertools.count()

    class Session(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            return f"s{next(numbers)}" if name == "state" else super().__getitem__(name)

    faulty.server.session = Session(faulty.server.session)


def forbidden_mailboxes(faulty: Faulty) -> None:
    faulty.refuse("forbidden", "Mailbox/get")
    faulty.server.change("Mailbox/changes", newState="m2", hasMoreChanges=False, updated=["inbox"])


def flapping(faulty: Faulty) -> None:
    """Every other round fails."""
    plain, numbers = faulty.server.methods["Mailbox/changes"], itertools.count()

    def changes(arguments: Arguments) -> Arguments:
        if next(numbers) % 2:
            raise RefusedError("forbidden")
        return plain(arguments)

    faulty.method("Mailbox/changes", changes)


def push_ends_after(*pieces: bytes) -> Fault:
    def begin(faulty: Faulty) -> None:
        faulty.pieces = pieces

    return begin


def push_status(status: int) -> Fault:
    def begin(faulty: Faulty) -> None:
        faulty.statuses["/events"] = status

    return begin


def push_without_end(piece: bytes) -> Fault:
    """The event stream sends as fast as it can."""

    def begin(faulty: Faulty) -> None:
        faulty.pieces = (piece,) * 1000

    return begin


FAULTS: dict[str, tuple[Fault, int, int]] = {
    "events without changes": (nothing, 50, 35),
    "all 401": (all_statuses(401), 5, 2),
    "all 403": (all_statuses(403), 20, 2),
    "all 404": (all_statuses(404), 20, 5),
    "all 429": (all_statuses(429), 40, 15),
    "all 500": (all_statuses(500), 40, 15),
    "all 503": (all_statuses(503), 40, 15),
    "Retry-After 0": (all_statuses(429, "0"), 40, 20),
    "api 302": (api_status(302), 30, 10),
    "api 404": (api_status(404), 30, 10),
    "api 429": (api_status(429), 40, 15),
    "api 500": (api_status(500), 50, 20),
    "garbage": (garbage, 30, 10),
    "forbidden changes": (forbidden_changes, 30, 10),
    "forbidden mailboxes": (forbidden_mailboxes, 40, 12),
    "full disk": (full_disk, 20, 5),
    "bug": (bug, 30, 10),
    "broken listing": (broken_listing, 40, 12),
    "restless account": (restless_account, 200, 60),
    "new state in each listing": (new_state_in_each_listing, 200, 60),
    "endless changes": (endless_changes, 400, 120),
    "endless mailbox changes": (endless_mailbox_changes, 400, 120),
    **{name: (fault, 400, 120) for name, fault in CHAINS.items()},
    "restless state": (restless_state, 50, 35),
    "restless session": (restless_session, 80, 60),
    "flapping": (flapping, 40, 12),
    "push ends at once": (push_ends_after(), 20, 5),
    "push ends after an event": (push_ends_after(EVENT), 20, 5),
    "push sends garbage and ends": (push_ends_after(b"\xff\x00" * 1000), 20, 5),
    "push sends garbage without end": (push_without_end(b"\xff\x00\n" * 2**18), 20, 5),
    "push sends events without end": (push_without_end(EVENT * 2**12), 60, 40),
    "push 204": (push_status(204), 5, 2),
    "push 401": (push_status(401), 5, 2),
    "push 403": (push_status(403), 5, 2),
    "push 404": (push_status(404), 5, 2),
    "push 429": (push_status(429), 20, 5),
    "push 500": (push_status(500), 20, 5),
}
"""For each fault: how many requests there may be in the first minute, and in a later one."""


async def read_often(follower: AccountFollower) -> None:
    """Wake the follower while the server is unreachable, as reads do."""
    while True:
        if not follower.connection.online:
            follower.schedule.hint()
        await trio.sleep(1.7)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_permanent_fault_costs_few_requests(
    tmp_path: Path, follower_clock: MockClock, fault: str
) -> None:
    begin, in_first_minute, in_later_minute = FAULTS[fault]
    with pytest.MonkeyPatch.context() as monkeypatch:
        faulty = Faulty(quiet_server(12), monkeypatch)
        faulty.server.before = faulty.answer
        if fault.startswith("push"):
            # The first event stream ends soon: the next one has the fault.
            faulty.pieces = (EVENT, 0.5)
        requests = faulty.server.requests
        async with (
            running_follower(faulty.server, tmp_path) as follower,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(read_often, follower)
            healthy = dict(faulty.server.methods), faulty.server.session
            await trio.sleep(0.1)
            assert follower.push_active
            begin(faulty)
            follower.schedule.hint()
            requests.clear()
            await trio.sleep(60)
            first = len(requests)
            await trio.sleep(120)
            requests.clear()
            await trio.sleep(180)
            later = len(requests) / 3
            nursery.cancel_scope.cancel()
            assert first <= in_first_minute
            assert later <= in_later_minute
            # The user need not wait.
            faulty.server.before = None
            faulty.server.delay = 0.0
            faulty.server.methods, faulty.server.session = healthy
            monkeypatch.undo()
            if fault != "all 401":
                await follower.sync_now()
                assert follower.connection.online
                assert follower.connection.error is None
                assert follower.schedule.failures == 0


@pytest.mark.parametrize("ids", [none, invented, known])
async def test_changes_without_end_are_given_up_with_a_reason(
    tmp_path: Path,
    follower_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    ids: Callable[[int], Sequence[str]],
) -> None:
    """The reason is in the status, mail can be read, and the next tries are ever later."""
    server = quiet_server(12)
    faulty = Faulty(server, monkeypatch)
    async with running_follower(server, tmp_path) as follower:
        endless_chain("Email", ids=ids, member="updated", is_current=False)(faulty)
        for failures in (1, 2, 3):
            with pytest.raises(ServerError, match="again and again that there are more changes"):
                await follower.sync_now()
            assert follower.connection.online
            assert follower.connection.error is not None
            assert "try again later" in follower.connection.error
            assert follower.schedule.failures == failures
            assert follower.schedule.next_try is not None
            assert await follower.current_client().download_blob("B1") == server.blobs["B1"]


async def test_a_pause_of_method_calls_stops_no_read(
    tmp_path: Path, follower_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server asks not to call methods for an hour. It is asked again only for the user."""
    server = quiet_server(12)
    async with running_follower(server, tmp_path) as follower:
        server.requests.clear()
        server.before = lambda request: (
            httpx.Response(429, headers={"Retry-After": "3600"})
            if request.method == "POST"
            else None
        )

        def calls() -> int:
            return sum(request.method == "POST" for request in server.requests)

        for number in (1, 2):
            with pytest.raises(UnreachableError, match="asks to wait 60 min"):
                await follower.sync_now()
            assert calls() == number
            assert follower.connection.online
            assert "asks to wait" in (follower.connection.error or "")
            assert await follower.current_client().download_blob("B1") == server.blobs["B1"]
        await trio.sleep(3500)
        assert calls() == 2
        server.before = None
        await trio.sleep(250)
        assert calls() > 2
        assert follower.connection.error is None
        assert follower.schedule.failures == 0


async def test_after_a_suspension_the_event_stream_is_opened_again(
    tmp_path: Path, follower_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead stream looks like one without events."""
    suspended = 0.0
    clocks = {time.CLOCK_BOOTTIME: lambda: suspended}
    monkeypatch.setattr(time, "clock_gettime", lambda clock: clocks.get(clock, lambda: 0.0)())
    faulty = Faulty(quiet_server(12), monkeypatch, pieces=(EVENT, NEVER))
    faulty.server.before = faulty.answer
    async with running_follower(faulty.server, tmp_path) as follower:

        def streams() -> int:
            return sum("/events" in request.url.path for request in faulty.server.requests)

        await trio.sleep(60)
        assert streams() == 1
        suspended = 3600.0
        await trio.sleep(12)
        assert streams() == 2
        assert follower.push_active
        await trio.sleep(30)
        assert streams() == 2


@pytest.mark.parametrize("fault", ["all 500", "api 404", "full disk", "garbage", "flapping"])
async def test_a_mount_recovers_by_itself(
    tmp_path: Path, follower_clock: MockClock, fault: str
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        faulty = Faulty(quiet_server(12), monkeypatch)
        async with running_follower(faulty.server, tmp_path) as follower:
            healthy = dict(faulty.server.methods)
            FAULTS[fault][0](faulty)
            faulty.server.before = faulty.answer
            follower.schedule.hint()
            await trio.sleep(300)
            faulty.server.before = None
            faulty.server.methods = healthy
            monkeypatch.undo()
            checked_at = follower.checked_at
            # The longest pause, and a try that began before it.
            await trio.sleep(72 + 30)
            assert follower.schedule.failures == 0
            assert follower.connection.online
            assert follower.checked_at > checked_at
