"""Bringing content while an account is listed for the first time.

A listing keeps the server busy with one request and this process with writing; in between there
is time to fetch what has been listed. What comes is kept under its blob id, and finds its place
when the state is known. What turns out to be gone by then was fetched in vain.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import trio

from jmapfs.index import IndexReader, ListedBlob, index_errors
from jmapfs.snapshot.bringing import Blobs
from jmapfs.snapshot.source import Ahead, Receiver, Wanted

_STEP: Final = 1000
# One is left to the listing.
_LEFT_TO_LISTING: Final = 1


class BringingAhead:
    """Brings the contents of what an index says is listed, until it is told to end."""

    def __init__(self, reader: IndexReader, blobs: Blobs, ahead: Ahead, receiver: Receiver) -> None:
        self._reader = reader
        self._blobs = blobs
        self._ahead = ahead
        self._receiver = receiver
        self._more = trio.Event()
        self._ended = False

    def proceed(self) -> None:
        """Take note that more is listed."""
        self._more.set()

    def end(self) -> None:
        """Begin nothing more; what is under way is waited for."""
        self._ended = True
        self._more.set()

    async def run(self) -> None:
        """Bring contents.

        Raises:
            StorageError: they cannot be kept.
            JmapfsError: the server is out of reach.
        """
        send, receive = trio.open_memory_channel[Sequence[Wanted]](0)
        async with trio.open_nursery() as nursery:
            async with receive:
                for _ in range(max(1, self._blobs.tasks - _LEFT_TO_LISTING)):
                    nursery.start_soon(self._bring, receive.clone())
            async with send:
                await self._order(send)

    async def _order(self, send: trio.MemorySendChannel[Sequence[Wanted]]) -> None:
        position = 0
        while not self._ended:
            # Before the index is asked: what is said meanwhile must not be lost.
            self._more = trio.Event()
            listed = await self._listed_after(position)
            if not listed:
                if not self._ended:
                    await self._more.wait()
                continue
            position = listed[-1].number
            candidates = [Wanted(one.blob_id, one.size, one.received_at, "") for one in listed]
            batches = self._blobs.batches(await self._ahead.unknown(candidates))
            for batch in itertools.takewhile(lambda _: not self._ended, batches):
                await send.send(batch)

    async def _bring(self, receive: trio.MemoryReceiveChannel[Sequence[Wanted]]) -> None:
        async with receive:
            async for batch in receive:
                # What cannot be had now is asked for again when it belongs to the state.
                await self._blobs.bring(batch, self._receiver)

    async def _listed_after(self, position: int) -> list[ListedBlob]:
        with index_errors():
            return await trio.to_thread.run_sync(self._reader.listed_after, position, _STEP)
