"""Where content comes from: the little that is asked of a JMAP client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class BatchLimits(Protocol):
    """How much one request for several blobs may ask for: so many, with so many bytes."""

    @property
    def blobs(self) -> int:
        """How many blobs at most."""
        ...

    @property
    def bytes(self) -> int:
        """How many bytes of content together."""
        ...


class BlobSource(Protocol):
    """Downloads whole blobs; `deadline` is in seconds from now, for everything.

    `blob_ids_are_sha1` says that ids of `G` and 40 hexadecimal digits are SHA-1s of the content.

    Raises, in its methods and from the iteration:
        JmapfsError: the blob cannot be had; a stream that breaks off does not just end.
    """

    @property
    def blob_ids_are_sha1(self) -> bool:
        """Whether content can be checked by its id."""
        ...

    @property
    def batch_limits(self) -> BatchLimits | None:
        """What `download_batch` takes; None where blobs can only be had one by one."""
        ...

    @property
    def concurrency(self) -> int:
        """How many requests may be under way at once, whoever makes them."""
        ...

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: float
    ) -> dict[str, bytes]:
        """Return those of the blobs (id and stated size) that one request could bring whole."""
        ...

    async def download_blob(self, blob_id: str, *, deadline: float) -> bytes:
        """Return the content of a blob."""
        ...

    def stream_blob(
        self, blob_id: str, *, deadline: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Return the content of a blob chunk by chunk."""
        ...
