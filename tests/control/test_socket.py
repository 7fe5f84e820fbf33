"""Requests and replies over the control socket, and what both sides do when the other goes away."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
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
from jmapfs.control.mounts import SUBTYPE, Mount, new_address
from jmapfs.control.socket_client import FreezeLease, ask, ask_mount
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
def mounted(tmp_path: Path) -> Mount:
    """A mount as the kernel would list it. No two tests have the same device."""
    device = f"0:{random.randrange(1 << 40, 1 << 50)}"
    return Mount(tmp_path, f"fuse.{SUBTYPE}", "mail", device, os.geteuid())


@pytest.fixture
async def daemon(mounted: Mount) -> AsyncIterator[Daemon]:
    daemon = Daemon()
    async with control_socket(mounted.device, daemon.answer):
        yield daemon


@contextlib.asynccontextmanager
async def connected(mount: Mount) -> AsyncIterator[trio.SocketStream]:
    (address,) = mount.daemon_addresses()
    client = trio.socket.socket(socket.AF_UNIX)
    await client.connect(address)
    async with trio.SocketStream(client) as stream:
        yield stream


async def line_of(stream: trio.SocketStream) -> dict[str, Any]:
    received = b""
    with trio.fail_after(5):
        while not received.endswith(b"\n"):
            received += await stream.receive_some()
    answer: dict[str, Any] = json.loads(received)
    return answer


async def reply_to(mount: Mount, request: Request[Any], seconds: float | None = None) -> Any:
    return await trio.to_thread.run_sync(partial(ask_mount, mount, request, timeout=seconds))


async def test_requests_and_replies(daemon: Daemon, mounted: Mount) -> None:
    assert not daemon.started.is_set()
    assert await reply_to(mounted, SyncRequest()) == Done()
    inodes = list(range(2000))
    assert await reply_to(mounted, MissingRequest(inodes)) == MissingMails(gone=inodes)
    with pytest.raises(RelayedError, match="not now") as caught:
        await reply_to(mounted, FreezeRequest(seconds=1))
    assert caught.value.exit_code == BusyError.exit_code
    with pytest.raises(UsageError, match="not valid Unicode"):
        await reply_to(mounted, SyncRequest("\udc80"))


async def test_a_bug_in_an_answer_is_an_error(daemon: Daemon, mounted: Mount) -> None:
    assert not daemon.started.is_set()
    for request in (StatusRequest(), DescribeRequest("", "")):
        with pytest.raises(RelayedError, match="a bug") as caught:
            await reply_to(mounted, request)
        assert caught.value.exit_code == 1
    assert await reply_to(mounted, SyncRequest()) == Done()


async def test_lines_that_are_no_requests(daemon: Daemon, mounted: Mount) -> None:
    assert not daemon.started.is_set()
    for nonsense in NONSENSE:
        async with connected(mounted) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(nonsense)
            assert (await line_of(stream))["exit_code"] == UsageError.exit_code
    assert await reply_to(mounted, SyncRequest()) == Done()


async def test_a_request_is_cancelled_when_the_client_disconnects(
    daemon: Daemon, mounted: Mount
) -> None:
    async with connected(mounted) as stream:
        await stream.send_all(b'{"command": "thaw"}\n')
        await daemon.started.wait()
    with trio.fail_after(5):
        await daemon.cancelled.wait()


async def test_a_client_gives_up_after_its_timeout(daemon: Daemon, mounted: Mount) -> None:
    with pytest.raises(NotMountedError, match="timed out"):
        await reply_to(mounted, ThawRequest(), seconds=0.1)
    with trio.fail_after(5):
        await daemon.cancelled.wait()


async def test_the_daemon_ends_before_it_answers(mounted: Mount) -> None:
    daemon = Daemon()

    async def require_error() -> None:
        with pytest.raises(NotMountedError, match="ended before it answered"):
            await reply_to(mounted, ThawRequest())

    async with trio.open_nursery() as nursery, control_socket(mounted.device, daemon.answer):
        nursery.start_soon(require_error)
        await daemon.started.wait()


async def test_a_daemon_that_has_ended(mounted: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotMountedError, match="does not answer"):
        await reply_to(mounted, SyncRequest())
    # The address was read from the list before the daemon ended.
    addresses = [new_address(mounted.device)]
    monkeypatch.setattr(Mount, "daemon_addresses", lambda *_: addresses)
    with pytest.raises(NotMountedError, match="does not answer"):
        await reply_to(mounted, SyncRequest())


async def test_two_daemons_have_separate_addresses(daemon: Daemon, mounted: Mount) -> None:
    other = dataclasses.replace(mounted, device=mounted.device + "1")
    async with control_socket(other.device, daemon.answer):
        (mine,), (theirs,) = mounted.daemon_addresses(), other.daemon_addresses()
        assert mine != theirs
        # Only the listening socket has an address that others find.
        async with connected(mounted):
            assert list(mounted.daemon_addresses()) == [mine]
    assert list(other.daemon_addresses()) == []
    assert await reply_to(mounted, SyncRequest()) == Done()


async def test_a_reply_without_end_is_given_up(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send_forever(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b" " * (1 << 16))

    monkeypatch.setattr(socket_client, "_LONGEST_REPLY", 1 << 20)
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(new_address(mounted.device))
    listening.listen()
    async with trio.open_nursery() as nursery:
        listener = trio.SocketListener(listening)
        nursery.start_soon(trio.serve_listeners, send_forever, [listener])
        with pytest.raises(NotMountedError, match="without end"):
            await reply_to(mounted, SyncRequest())
        nursery.cancel_scope.cancel()


def test_a_mountpoint_without_a_mount(tmp_path: Path) -> None:
    with pytest.raises(NotMountedError, match="not mounted there"):
        ask(tmp_path, SyncRequest())
    with pytest.raises(NotMountedError, match="not mounted there"):
        FreezeLease(tmp_path)


# --- Leases


class FakeMount:
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
def mount(monkeypatch: pytest.MonkeyPatch) -> FakeMount:
    mount = FakeMount()
    monkeypatch.setattr(socket_client, "ask", mount.ask)
    monkeypatch.setattr(socket_client, "RENEWAL_SECONDS", 0.01)
    return mount


def test_a_lease_is_renewed_until_it_is_released(mount: FakeMount) -> None:
    with FreezeLease(Path("/mnt"), limit=60, join=True) as lease:
        assert mount.requests[0] == FreezeRequest(seconds=30, limit=60, join=True)
        assert (lease.id, lease.since) == ("one", 1.5)
        wait_until(lambda: mount.renewals > 3)
        assert lease.renew()
    assert mount.requests.count(ThawRequest("one")) == 1


def test_a_lease_that_was_lost_is_noticed(mount: FakeMount) -> None:
    lease = FreezeLease(Path("/mnt"))
    mount.lost = True
    before = mount.renewals
    # Errors are for the process that holds the lease; the thread goes on.
    wait_until(lambda: mount.renewals > before + 2)
    assert not lease.renew()
    assert not lease.release()


def test_a_renewal_without_an_answer_is_an_error(mount: FakeMount) -> None:
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
