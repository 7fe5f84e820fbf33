"""Bringing content while an account is listed: whoever orders it is told of every end."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import trio

from jmapfs.snapshot.fetcher import EarlyFetcher


class Slow:
    """In the place of an index's reader: it has nothing, and says so when it is let go."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self.answer = threading.Event()

    def blobs_added_after(self, _position: int, _count: int) -> list[Any]:
        trio.from_thread.run_sync(self.asked.set)
        assert self.answer.wait(10)
        return []


async def test_an_end_while_the_index_is_asked() -> None:
    reader = Slow()
    blobs: Any = SimpleNamespace(concurrency=3)
    bringing = EarlyFetcher(cast("Any", reader), blobs, cast("Any", None), cast("Any", None))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bringing.run)
            await reader.asked.wait()
            bringing.stop()
            reader.answer.set()
