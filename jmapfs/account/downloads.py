"""Downloads of an account's blobs, over whatever connection there is at the time.

Connections come and go with the server's reach; what counts them all, and what fails at once where
there is none, is here.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

from jmapfs.errors import AuthenticationError, UnreachableError
from jmapfs.jmap import BatchLimits, BlobStream, Client, Traffic
from jmapfs.sync import Keeper


class TotalTraffic:
    """What all connections to a server have sent and received, the closed ones included."""

    def __init__(self) -> None:
        self._closed = Traffic()
        self._open = Traffic()

    def total(self) -> Traffic:
        """Return the sums."""
        return Traffic(
            requests=self._closed.requests + self._open.requests,
            blobs=self._closed.blobs + self._open.blobs,
            bytes=self._closed.bytes + self._open.bytes,
        )

    def begin(self, traffic: Traffic) -> None:
        """Count a new connection's traffic from now on."""
        self._closed, self._open = self.total(), traffic


class AccountBlobs:
    """Downloads from whatever connection there is; fails at once where there is none."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    @property
    def blob_ids_are_sha1(self) -> bool:
        """Whether content can be checked by its id."""
        return self._client().session.blob_ids_are_sha1

    @property
    def batch_limits(self) -> BatchLimits | None:
        """What `download_batch` takes; None where blobs can only be had one by one."""
        client = self._keeper.client
        return None if client is None else client.batch_limits

    @property
    def concurrency(self) -> int:
        """How many requests may be under way at once."""
        client = self._keeper.client
        return 1 if client is None else client.api.transport.concurrency

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: float
    ) -> dict[str, bytes]:
        """Return those of the blobs that one request could bring whole."""
        with self._watched():
            return await self._client().download_batch(blobs, deadline=deadline)

    async def download_blob(self, blob_id: str, *, deadline: float) -> bytes:
        """Return the content of a blob."""
        with self._watched():
            return await self._client().download_blob(blob_id, deadline=deadline)

    @contextlib.asynccontextmanager
    async def stream_blob(self, blob_id: str, *, deadline: float) -> AsyncIterator[BlobStream]:
        """Return the content of a blob chunk by chunk."""
        with self._watched():
            async with self._client().stream_blob(blob_id, deadline=deadline) as stream:
                yield stream

    def _client(self) -> Client:
        if self._keeper.client is None:
            raise UnreachableError(
                f"offline: {self._keeper.condition.error or 'not connected yet'}"
            )
        return self._keeper.client

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (UnreachableError, AuthenticationError):
            if self._keeper.client is not None:
                # Is it this download, or is the server gone? The keeper finds out.
                self._keeper.hint()
            raise
