"""Running what a command does such that Ctrl-C and its like end it in order.

Without this, trio raises KeyboardInterrupt wherever the program happens to be, also between the
making of a coroutine and its awaiting: what a library was about to do is then never done, and
Python warns of it in the middle of what the user sees. A signal that is received as an event
cancels the work instead, so that every `finally` on its way is run.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import click
import trio

from jmapfs.errors import lone_errors

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_Result = TypeVar("_Result")


class InterruptedBySignal(click.Abort):
    """A signal ended the command. Its text, if any, is shown to the user."""


def run_with_signals(work: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run `work` in trio until it ends, or is cancelled by SIGINT, SIGTERM or SIGHUP.

    A second SIGINT ends the process at once: a thread may be waiting for a disk that does not
    answer. A signal that is ignored (nohup, the background jobs of a script) stays so.

    Raises:
        InterruptedBySignal: a signal came, even where the work was just done.
        JmapfsError: what `work` raises; alone, not in an exception group.
    """
    numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    handler = signal.getsignal(signal.SIGINT)
    try:
        with lone_errors():
            return trio.run(_run, work, numbers)
    finally:
        signal.signal(signal.SIGINT, handler)


async def _run(
    work: Callable[[], Awaitable[_Result]], numbers: Sequence[signal.Signals]
) -> _Result:
    async with trio.open_nursery() as nursery:
        interruption = _Interruption()
        if numbers:
            await nursery.start(interruption.watch, nursery.cancel_scope, numbers)
        result = await work()
        nursery.cancel_scope.cancel()
    if interruption.came:
        raise InterruptedBySignal
    return result


class _Interruption:
    """Cancels the work when a signal comes, and says whether one did."""

    def __init__(self) -> None:
        self.came = False

    async def watch(
        self,
        scope: trio.CancelScope,
        numbers: Sequence[signal.Signals],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.open_signal_receiver(*numbers) as received:
            task_status.started()
            async for _ in received:
                self.came = True
                break
        if self.came and signal.SIGINT in numbers:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        scope.cancel()
