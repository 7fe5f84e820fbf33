"""Requests and replies over the control socket, and what both sides do when the other goes away."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmapfs.control import socket_client
from jmapfs.control.messages import (
    LEASE_SECONDS,
    RENEWAL_SECONDS,
    AnyRequest,
    DescribeRequest,
    Done,
    FreezeRequest,
    Lease,
    MissingMails,
    MissingRequest,
    RenewRequest,
    Request,
    StatusRequest,
    SyncRequest,
    Thawed,
    ThawRequest,
)
from jmapfs.control.socket_client import FreezeLease, ask, ask_socket
from jmapfs.control.socket_server import control_socket
from jmapfs.errors import BusyError, NotMountedError, RelayedError, UsageError
from tests.waits import wait_until

NONSENSE = (
    b"\n",
    b"{}\n",
    b"[1]\n",
    b'{"command": "\xff"}\n',
    b'{"command": "nothing"}\n',
    b'{"command": "freeze"}\n',
    b'{"command": "freeze", "seconds": "x"}\n',
    b'{"command": "missing", "inodes": [-1]}\n',
    b'{"a": ' + b"[" * 100_000 + b"\n",
    b"x" * 2_000_000,
)


class Daemon:
    """Answers requests by their kind; a request to thaw is never answered."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.cancelled = trio.Event()

    async def answer(self, request: AnyRequest) -> object:
        await trio.lowlevel.checkpoint()
        match request:
            case MissingRequest(inodes):
                return MissingMails(gone=inodes)
            case FreezeRequest():
                raise BusyError("not now")
            case DescribeRequest():
                return "\udcff"
            case StatusRequest():
                raise ZeroDivisionError
            case ThawRequest():
                self.started.set()
                try:
                    await trio.sleep_forever()
                finally:
                    self.cancelled.set()
            case _:
                return Done()
        raise AssertionError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mount.sock"


@pytest.fixture
async def daemon(path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon()
    async with control_socket(path, daemon.answer):
        yield daemon


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_unix_socket(str(path)) as stream:
        yield stream


async def line_of(stream: trio.SocketStream) -> dict[str, Any]:
    received = b""
    with trio.fail_after(5):
        while not received.endswith(b"\n"):
            received += await stream.receive_some()
    answer: dict[str, Any] = json.loads(received)
    return answer


async def reply_to(path: Path, request: Request[Any], seconds: float | None = None) -> Any:
    return await trio.to_thread.run_sync(partial(ask_socket, path, request, timeout=seconds))


async def test_requests_and_replies(daemon: Daemon, path: Path) -> None:
    assert not daemon.started.is_set()
    assert await reply_to(path, SyncRequest()) == Done()
    inodes = list(range(2000))
    assert await reply_to(path, MissingRequest(inodes)) == MissingMails(gone=inodes)
    with pytest.raises(RelayedError, match="not now") as caught:
        await reply_to(path, FreezeRequest(seconds=1))
    assert caught.value.exit_code == BusyError.exit_code
    with pytest.raises(UsageError, match="not valid Unicode"):
        await reply_to(path, SyncRequest("\udc80"))


async def test_a_bug_in_an_answer_is_an_error(daemon: Daemon, path: Path) -> None:
    assert not daemon.started.is_set()
    for request in (StatusRequest(), DescribeRequest("", "")):
        with pytest.raises(RelayedError, match="a bug") as caught:
            await reply_to(path, request)
        assert caught.value.exit_code == 1
    assert await reply_to(path, SyncRequest()) == Done()


async def test_lines_that_are_no_requests(daemon: Daemon, path: Path) -> None:
    assert not daemon.started.is_set()
    for nonsense in NONSENSE:
        async with connected(path) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(nonsense)
            assert (await line_of(stream))["exit_code"] == UsageError.exit_code
    assert await reply_to(path, SyncRequest()) == Done()


async def test_a_request_is_cancelled_when_the_client_disconnects(
    daemon: Daemon, path: Path
) -> None:
    async with connected(path) as stream:
        await stream.send_all(b'{"command": "thaw"}\n')
        await daemon.started.wait()
    with trio.fail_after(5):
        await daemon.cancelled.wait()


async def test_a_client_gives_up_after_its_timeout(daemon: Daemon, path: Path) -> None:
    with pytest.raises(NotMountedError, match="timed out"):
        await reply_to(path, ThawRequest(), seconds=0.1)
    with trio.fail_after(5):
        await daemon.cancelled.wait()


async def test_the_daemon_ends_before_it_answers(path: Path) -> None:
    daemon = Daemon()

    async def require_error() -> None:
        with pytest.raises(NotMountedError, match="ended before it answered"):
            await reply_to(path, ThawRequest())

    async with trio.open_nursery() as nursery, control_socket(path, daemon.answer):
        nursery.start_soon(require_error)
        await daemon.started.wait()


@pytest.mark.parametrize("left_over", [True, False])
def test_a_socket_that_nobody_listens_to(path: Path, *, left_over: bool) -> None:
    if left_over:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.bind(str(path))
    reason = "the daemon of this mount has died" if left_over else "there is no control socket"
    with pytest.raises(NotMountedError, match=reason):
        ask_socket(path, SyncRequest())


def test_a_mountpoint_without_a_mount(tmp_path: Path) -> None:
    with pytest.raises(NotMountedError, match="not mounted there"):
        ask(tmp_path, SyncRequest())
    with pytest.raises(NotMountedError, match="not mounted there"):
        FreezeLease(tmp_path)


# --- Leases


class Mount:
    """Replaces `ask`: grants a lease, and notes when it is renewed and given back."""

    def __init__(self) -> None:
        self.requests: list[Request[Any]] = []
        self.lost = False
        self.silent = False

    def ask(self, _mountpoint: Path, request: Request[Any]) -> object:
        self.requests.append(request)
        if self.silent:
            raise NotMountedError("the daemon does not answer: timed out")
        match request:
            case FreezeRequest():
                return Lease("one", 1.5)
            case RenewRequest() if self.lost:
                raise RelayedError("the freeze has ended", BusyError.exit_code)
            case RenewRequest():
                return Lease("one", 1.5)
        return Thawed(not self.lost)

    @property
    def renewals(self) -> int:
        return sum(isinstance(request, RenewRequest) for request in self.requests)


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Mount:
    mount = Mount()
    monkeypatch.setattr(socket_client, "ask", mount.ask)
    monkeypatch.setattr(socket_client, "RENEWAL_SECONDS", 0.01)
    return mount


def test_a_lease_is_renewed_until_it_is_released(mount: Mount) -> None:
    with FreezeLease(Path("/mnt"), limit=60, join=True) as lease:
        assert mount.requests[0] == FreezeRequest(seconds=30, limit=60, join=True)
        assert (lease.id, lease.since) == ("one", 1.5)
        wait_until(lambda: mount.renewals > 3)
        assert lease.renew()
    assert mount.requests.count(ThawRequest("one")) == 1


def test_a_lease_that_was_lost_is_noticed(mount: Mount) -> None:
    lease = FreezeLease(Path("/mnt"))
    mount.lost = True
    before = mount.renewals
    # Errors are for the process that holds the lease; the thread goes on.
    wait_until(lambda: mount.renewals > before + 2)
    assert not lease.renew()
    assert not lease.release()


def test_a_renewal_without_an_answer_is_an_error(mount: Mount) -> None:
    lease = FreezeLease(Path("/mnt"))
    mount.silent = True
    before = mount.renewals
    wait_until(lambda: mount.renewals > before + 2)
    with pytest.raises(NotMountedError, match="does not answer"):
        lease.renew()
    mount.silent = False
    assert lease.renew()
    assert lease.release()


def test_a_renewal_waits_for_a_busy_mount_while_the_lease_can_last() -> None:
    assert RENEWAL_SECONDS < RenewRequest.timeout == LEASE_SECONDS
