"""Sessions on the control socket: they last as long as their connection, and not a moment more."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmapfs.control import socket_server
from jmapfs.control.socket_client import ask, hold, hold_over
from jmapfs.control.socket_server import ControlSession, control_socket
from jmapfs.errors import BusyError, NotMountedError, RelayedError, UsageError

NAME = "mount.sock"
NONSENSE = (b"\n", b"{}\n", b"[1]\n", b'{"command": "\xff"}\n', b'{"a": ' + b"[" * 100_000 + b"\n")


class Daemon:
    """Something that can be held; it notes who holds it."""

    def __init__(self) -> None:
        self.holders = 0
        self.stuck = trio.Event()
        self.let_go = trio.Event()
        self._change = trio.Event()
        self.error: Exception | None = None
        self.slow = False

    @contextlib.asynccontextmanager
    async def hold(self, arguments: Mapping[str, Any]) -> AsyncIterator[ControlSession]:
        if self.error is not None:
            raise self.error
        self.holders += 1
        self._changed()
        try:
            if self.slow:
                await self.stick(arguments)
            yield ControlSession(
                {"since": 1.5, "number": self.holders, **arguments},
                {
                    "echo": self.echo,
                    "fail": self.fail,
                    "misspell": self.misspell,
                    "stick": self.stick,
                },
            )
        finally:
            self.holders -= 1
            self._changed()

    async def echo(self, arguments: Mapping[str, Any]) -> object:
        await trio.lowlevel.checkpoint()
        return arguments

    async def fail(self, _arguments: Mapping[str, Any]) -> object:
        await trio.lowlevel.checkpoint()
        raise BusyError("not now")

    async def misspell(self, _arguments: Mapping[str, Any]) -> object:
        await trio.lowlevel.checkpoint()
        return "\udcff"

    async def stick(self, _arguments: Mapping[str, Any]) -> object:
        self.stuck.set()
        try:
            await trio.sleep_forever()
        finally:
            self.let_go.set()
        raise AssertionError

    @contextlib.asynccontextmanager
    async def running(self, directory: Path) -> AsyncIterator[None]:
        commands = {"echo": self.echo, "stick": self.stick}
        async with control_socket(directory, NAME, commands, {"hold": self.hold}):
            yield

    async def held_by(self, holders: int) -> None:
        with trio.fail_after(5):
            while self.holders != holders:
                await self._change.wait()

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()


@contextlib.asynccontextmanager
async def connected(directory: Path) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_unix_socket(str(directory / NAME)) as stream:
        yield stream


async def line_of(stream: trio.SocketStream) -> dict[str, Any]:
    received = b""
    with trio.fail_after(5):
        while not received.endswith(b"\n"):
            received += await stream.receive_some()
    answer: dict[str, Any] = json.loads(received)
    return answer


async def test_questions_and_answers(tmp_path: Path) -> None:
    daemon = Daemon()

    def holder() -> None:
        with hold_over(tmp_path, NAME) as held:
            assert daemon.holders == 1
            assert held.since == 1.5
            large = "x" * 500_000
            assert held.ask("echo", {"large": large}) == {"large": large}
            with pytest.raises(RelayedError, match="not now") as caught:
                held.ask("fail")
            assert caught.value.exit_code == BusyError.exit_code
            with pytest.raises(RelayedError, match="does not know the command 'hold'"):
                held.ask("hold")
            with pytest.raises(UsageError, match="not text"):
                held.ask("echo", {"name": "\udc80"})
            assert held.ask("echo", {"still": 1}) == {"still": 1}
            assert daemon.holders == 1

    async with daemon.running(tmp_path):
        await trio.to_thread.run_sync(holder)
        await daemon.held_by(0)
        # One answer without a session is given as ever.
        asking = partial(ask, tmp_path, NAME, "echo", arguments={"a": 1})
        assert await trio.to_thread.run_sync(asking) == {"a": 1}


async def test_an_answer_that_nobody_waits_for(tmp_path: Path) -> None:
    """Also without a session: what it would lead to, nobody would undo."""
    daemon = Daemon()
    async with daemon.running(tmp_path):
        async with connected(tmp_path) as stream:
            await stream.send_all(b'{"command": "stick"}\n')
            await daemon.stuck.wait()
        with trio.fail_after(5):
            await daemon.let_go.wait()


async def test_it_ends_with_the_connection(tmp_path: Path) -> None:
    daemon = Daemon()
    async with daemon.running(tmp_path):
        async with connected(tmp_path) as one, connected(tmp_path) as other:
            for number, stream in enumerate((one, other), 1):
                await stream.send_all(b'{"command": "hold", "arguments": {"a": 1}}\n')
                expected = {"since": 1.5, "number": number, "a": 1}
                assert await line_of(stream) == {"answer": expected}
            assert daemon.holders == 2
            await one.aclose()
            await daemon.held_by(1)
            await other.send_all(b'{"command": "echo"}\n')
            assert await line_of(other) == {"answer": {}}
        await daemon.held_by(0)


async def test_it_ends_while_an_answer_is_under_way(tmp_path: Path) -> None:
    daemon = Daemon()
    async with daemon.running(tmp_path):
        async with connected(tmp_path) as stream:
            # Both at once: what comes after the first line is not lost.
            await stream.send_all(b'{"command": "hold"}\n{"command": "stick"}\n')
            await daemon.stuck.wait()
            assert daemon.holders == 1
        await daemon.held_by(0)


async def test_it_ends_before_it_has_begun(tmp_path: Path) -> None:
    daemon = Daemon()
    daemon.slow = True
    async with daemon.running(tmp_path):
        async with connected(tmp_path) as stream:
            await stream.send_all(b'{"command": "hold"}\n')
            await daemon.stuck.wait()
            assert daemon.holders == 1
        await daemon.held_by(0)


async def test_it_ends_with_a_peer_that_does_not_wait(tmp_path: Path) -> None:
    daemon = Daemon()
    async with daemon.running(tmp_path), connected(tmp_path) as stream:
        await stream.send_all(b'{"command": "hold"}\n' + b'{"command": "stick"}\n' * 10)
        await daemon.held_by(0)
        # The connection is closed, and what was not read of it is no concern of anybody.
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass


async def test_it_ends_with_a_line_that_does_not(tmp_path: Path) -> None:
    daemon = Daemon()
    async with daemon.running(tmp_path), connected(tmp_path) as stream:
        await stream.send_all(b'{"command": "hold"}\n')
        await line_of(stream)
        # Answered in pieces, it would be taken for several questions.
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"x" * (1 << 21))
        await daemon.held_by(0)


async def test_what_is_no_request(tmp_path: Path) -> None:
    daemon = Daemon()
    async with daemon.running(tmp_path), connected(tmp_path) as stream:
        await stream.send_all(b'{"command": "hold"}\n')
        await line_of(stream)
        for nonsense in NONSENSE:
            await stream.send_all(nonsense)
            assert (await line_of(stream))["exit_code"] == UsageError.exit_code
        assert daemon.holders == 1
        for nonsense in NONSENSE:
            async with connected(tmp_path) as other:
                await other.send_all(nonsense)
                assert (await line_of(other))["exit_code"] == UsageError.exit_code
        await stream.send_all(b'{"command": "echo"}\n')
        assert await line_of(stream) == {"answer": {}}


async def test_an_answer_that_is_no_text(tmp_path: Path) -> None:
    daemon = Daemon()
    async with daemon.running(tmp_path), connected(tmp_path) as stream:
        await stream.send_all(b'{"command": "hold"}\n')
        await line_of(stream)
        await stream.send_all(b'{"command": "misspell"}\n')
        assert (await line_of(stream))["exit_code"] == 1
        await stream.send_all(b'{"command": "echo"}\n')
        assert await line_of(stream) == {"answer": {}}


async def test_it_cannot_be_begun(tmp_path: Path) -> None:
    daemon = Daemon()
    daemon.error = BusyError("held by somebody else")

    def holder() -> None:
        with hold_over(tmp_path, NAME):
            raise AssertionError

    async with daemon.running(tmp_path):
        with pytest.raises(RelayedError, match="held by somebody else") as caught:
            await trio.to_thread.run_sync(holder)
        assert caught.value.exit_code == BusyError.exit_code


async def test_the_daemon_ends_first(tmp_path: Path) -> None:
    daemon = Daemon()
    held_already, ended = trio.Event(), trio.Event()

    def holder() -> None:
        with hold_over(tmp_path, NAME) as held:
            trio.from_thread.run_sync(held_already.set)
            trio.from_thread.run(ended.wait)
            for _ in range(2):
                with pytest.raises(NotMountedError, match="does not answer"):
                    held.ask("echo")

    async with trio.open_nursery() as nursery:
        async with daemon.running(tmp_path):
            nursery.start_soon(trio.to_thread.run_sync, holder)
            await held_already.wait()
        assert daemon.holders == 0
        ended.set()


async def test_an_answer_that_comes_too_late_is_nobodys(tmp_path: Path) -> None:
    daemon = Daemon()

    def holder() -> None:
        with hold_over(tmp_path, NAME) as held:
            with pytest.raises(NotMountedError, match="timed out"):
                held.ask("stick", seconds=0.1)
            with pytest.raises(NotMountedError):
                held.ask("echo")

    async with daemon.running(tmp_path):
        await trio.to_thread.run_sync(holder)
        await daemon.held_by(0)


@pytest.mark.parametrize("there", [True, False])
def test_nobody_is_there_to_hold(tmp_path: Path, *, there: bool) -> None:
    if there:
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(tmp_path / NAME))
    with pytest.raises(NotMountedError), hold_over(tmp_path, NAME):
        pass
    with pytest.raises(NotMountedError, match="not mounted there"), hold(tmp_path):
        pass


async def test_it_ends_when_nothing_is_asked_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_server, "_SILENCE_SECONDS", 0.1)
    daemon = Daemon()
    has_let_go = trio.Event()

    def holder() -> None:
        with hold_over(tmp_path, NAME) as held:
            trio.from_thread.run(has_let_go.wait)
            with pytest.raises(NotMountedError, match="let go of what it held"):
                held.ask("echo")

    async with daemon.running(tmp_path), trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, holder)
        await daemon.held_by(1)
        await daemon.held_by(0)
        has_let_go.set()
