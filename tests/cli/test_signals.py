"""A signal cancels the work of a command in order, and Ctrl-C ends imports silently."""

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
def test_a_signal_cancels_the_work(number: signal.Signals) -> None:
    order: list[str] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    async def work() -> None:
        try:
            signal.raise_signal(number)
            order.append("statement finished")
            with trio.fail_after(10):
                await trio.sleep_forever()
        finally:
            order.append("cleaned up")

    with pytest.raises(InterruptedBySignal):
        run_with_signals(work)
    assert order == ["statement finished", "cleaned up"]
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_a_signal_at_the_last_moment_is_not_lost() -> None:
    async def work() -> None:
        with trio.CancelScope(shield=True):
            signal.raise_signal(signal.SIGINT)
            await trio.sleep(0.01)

    with pytest.raises(InterruptedBySignal):
        run_with_signals(work)


def test_ignored_signals_stay_ignored() -> None:
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


def test_an_error_is_not_in_a_group() -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="the disk is full"):
        run_with_signals(work)


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        deadline = time.monotonic() + 30
        # Signals that arrive before the first one is handled count as the first one.
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        assert process.wait(timeout=1) == -signal.SIGINT


@pytest.mark.parametrize(("module", "argument"), [("click", "--version"), ("rich", "prefetch")])
def test_ctrl_c_during_imports_ends_silently(tmp_path: Path, module: str, argument: str) -> None:
    (tmp_path / f"{module}.py").write_text(SLOW_IMPORT)
    with subprocess.Popen(
        [sys.executable, "-m", "jmapfs", argument],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == (b"", b"")
        assert process.returncode == -signal.SIGINT


def test_ctrl_c_before_a_freeze_begins() -> None:
    """Before the freeze, Ctrl-C ends the wait; afterwards it is for the command."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _SignalForwarding():
        signal.raise_signal(signal.SIGINT)
    with _SignalForwarding() as signals:
        signals.frozen()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
