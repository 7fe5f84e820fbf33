"""A signal cancels what a command does, instead of breaking off wherever it happens to be."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from jmapfs.cli.freeze_command import _SignalForwarding
from jmapfs.cli.signals import InterruptedBySignal, run_with_signals
from jmapfs.errors import StorageError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STUCK = """
import time, trio
from jmapfs.cli.signals import run_with_signals

async def work():
    print("begun", flush=True)
    await trio.to_thread.run_sync(time.sleep, 60)

run_with_signals(work)
"""

SLOW_IMPORT = """
import time
print("importing", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def ignoring(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_event(number: signal.Signals) -> None:
    order: list[str] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    async def work() -> None:
        try:
            signal.raise_signal(number)
            order.append("what was begun is done")
            with trio.fail_after(10):
                await trio.sleep_forever()
        finally:
            order.append("left in order")

    with pytest.raises(InterruptedBySignal):
        run_with_signals(work)
    assert order == ["what was begun is done", "left in order"]
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_a_signal_at_the_last_moment_is_not_lost() -> None:
    async def work() -> None:
        with trio.CancelScope(shield=True):
            signal.raise_signal(signal.SIGINT)
            await trio.sleep(0.01)

    with pytest.raises(InterruptedBySignal):
        run_with_signals(work)


def test_what_is_ignored_stays_ignored() -> None:
    async def work(number: signal.Signals) -> str:
        signal.raise_signal(number)
        await trio.sleep(0.01)
        return "done"

    for number in SIGNALS:
        with ignoring(number):
            assert run_with_signals(partial(work, number)) == "done"
    with contextlib.ExitStack() as stack:
        for number in SIGNALS:
            stack.enter_context(ignoring(number))
        assert run_with_signals(partial(work, signal.SIGHUP)) == "done"


def test_an_error_is_alone() -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="the disk is full"):
        run_with_signals(work)


def test_a_second_ctrl_c_does_not_wait() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        deadline = time.monotonic() + 30
        # The first can be answered only a moment later; what comes before that is one with it.
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        assert process.wait(timeout=1) == -signal.SIGINT


def test_ctrl_c_while_the_commands_are_imported(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(SLOW_IMPORT)
    with subprocess.Popen(
        [sys.executable, "-m", "jmapfs", "--version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == (b"", b"")
        assert process.returncode == -signal.SIGINT


def test_ctrl_c_before_a_freeze_is_there() -> None:
    """Once it is, it is the command's; until then it ends the waiting."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _SignalForwarding():
        signal.raise_signal(signal.SIGINT)
    with _SignalForwarding() as signals:
        signals.frozen()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
