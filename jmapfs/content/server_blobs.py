"""The blobs of a server, as the content layer sees them: downloads, and what the server states.

`sync.blob_source` implements `BlobSource` for an account.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from jmapfs.deadline import Deadline
from jmapfs.errors import JmapfsError, ServerError
from jmapfs.jmap.batches import BlobGetLimits
from jmapfs.jmap.blob_get import BlobDigest
from jmapfs.jmap.emails import EmailValues


class ContentStream(Protocol):
    """The chunks of a content. These values are known after the first one.

    `content_type` is a media type in lower case, without parameters; empty if there is none.
    `announced_length` is the length of the whole content, if the response announces it.
    """

    content_type: str
    announced_length: int | None

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the iterator."""

    async def __anext__(self) -> bytes:
        """Return the next chunk."""


class BlobSource(Protocol):
    """Downloads whole blobs by content key; a `deadline` is that of the whole transfer.

    Raises, in its methods and from the iteration:
        ServerError: the epoch of the key has ended, so that the blob cannot be requested any more.
        JmapfsError: the blob cannot be fetched, or the stream breaks off.
    """

    @property
    def blob_ids_are_sha1(self) -> bool:
        """Whether ids of `G` and 40 hexadecimal digits are SHA-1s of the content (Cyrus)."""

    @property
    def batch_limits(self) -> BlobGetLimits | None:
        """The limits of `download_batch` now; None if the server has no Blob/get."""

    @property
    def concurrency(self) -> int:
        """How many requests may run at the same time, for all callers together."""

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: Deadline
    ) -> dict[str, bytes]:
        """Request blobs (key, stated size) together; return the contents that arrived whole.

        Returns no content if the server does not have Blob/get.
        """

    def stream_blob(
        self, key: str, *, fresh: bool = False, deadline: Deadline
    ) -> AbstractAsyncContextManager[ContentStream]:
        """Open a blob for reading from the download URL; if `fresh`, over a new connection."""

    def stream_ranges(
        self, key: str, size: int, *, deadline: Deadline
    ) -> AbstractAsyncContextManager[ContentStream]:
        """Open a blob of about `size` bytes for reading by Blob/get, if `batch_limits` is set."""

    async def stated(self, keys: Collection[str]) -> Mapping[str, EmailValues]:
        """Ask the server what it states now about blobs; return this for the blobs it shows.

        A blob is shown if an email that has it in the index still has it, with the same time.
        """

    async def digests(self, keys: Collection[str]) -> Mapping[str, BlobDigest]:
        """Return the digests that the server offers; none if it does not offer any."""

    def describe(self, key: str) -> str:
        """Return a name for a blob in messages: the path of a file and the id of its email."""


class _Question:
    """A request for stated values that several tasks share."""

    def __init__(self) -> None:
        self.keys: dict[str, None] = {}
        self.answer: Mapping[str, EmailValues] | None = None
        self.error: JmapfsError | None = None


class StatedValues:
    """What the server states about blobs. Tasks that ask at the same time share a request.

    While one request is under way, all others wait for the next one.
    """

    def __init__(self, source: BlobSource) -> None:
        self._source = source
        self._lock = trio.Lock()
        self._next = _Question()

    async def ask(self, keys: Collection[str]) -> Mapping[str, EmailValues]:
        """Return what the server states about blobs; the request begins after this call."""
        question = self._next
        question.keys.update(dict.fromkeys(keys))
        async with self._lock:
            # If the task that has begun the request was cancelled, the next task repeats it.
            if question.answer is None and question.error is None:
                if question is self._next:
                    self._next = _Question()
                try:
                    question.answer = await self._source.stated(list(question.keys))
                except JmapfsError as error:
                    question.error = error
        if question.answer is not None:
            return question.answer
        if isinstance(question.error, ServerError) and len(question.keys) > len(set(keys)):
            # An email of another task may be the reason.
            return await self._source.stated(keys)
        raise question.error or RuntimeError("a question without an answer")
