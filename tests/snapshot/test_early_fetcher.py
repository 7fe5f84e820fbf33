"""The download of contents while an account is listed: it ends when it is told to."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import trio

from jmapfs.snapshot.fetcher import EarlyFetcher
from tests.snapshot.handmade import ORIGIN


class SlowReader:
    """A reader of an empty index; a query takes until `answer` is set."""

    def __init__(self) -> None:
        self.queried = trio.Event()
        self.answer = threading.Event()

    def blobs_added_after(self, _position: int, _count: int) -> list[Any]:
        trio.from_thread.run_sync(self.queried.set)
        assert self.answer.wait(10)
        return []


async def test_stop_while_the_index_is_read() -> None:
    reader = SlowReader()
    blobs: Any = SimpleNamespace(concurrency=3)
    fetcher = EarlyFetcher(cast("Any", reader), blobs, cast("Any", None), ORIGIN)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.run)
            await reader.queried.wait()
            fetcher.stop()
            reader.answer.set()
