"""Runs the work of a command. If a signal arrives, the work is cancelled in an orderly way.

By default, trio raises KeyboardInterrupt at any point of the program, also between the creation of
a coroutine and its `await`. Then the coroutine never runs, and Python prints a warning in the
middle of the output. Here a signal is an event that cancels the work, so that every `finally` runs.
"""

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
    """Run `work` in trio until it ends, or until SIGINT, SIGTERM or SIGHUP cancels it.

    A second SIGINT ends the process at once, because a thread may be waiting for a disk that does
    not answer. A signal that is ignored (nohup, background jobs of a script) stays ignored.

    Raises:
        InterruptedBySignal: a signal was received, even if the work was already finished.
        JmapfsError: the error of `work`, never in an exception group.
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
    received: list[int] = []

    async def watch(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            received.append(await anext(signals))
        if signal.SIGINT in numbers:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        if numbers:
            await nursery.start(watch)
        result = await work()
        nursery.cancel_scope.cancel()
    if received:
        raise InterruptedBySignal
    return result
