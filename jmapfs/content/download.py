"""The transfer of blobs from the server, for reads, read-ahead, prefetch and snapshots.

The caller searches the disk cache first, and only missing blobs are fetched: several small ones
with one request (`Downloader.fetch_batch`), or one alone (`Downloader.fetch`). Both return only
content that is accepted by the rules of `confirmation`. Content of a batch that is in doubt is
fetched again alone, and content in doubt that was fetched alone is fetched again by another route:

    batch (Blob/get) ── in doubt ──> download URL
    download URL ────── in doubt ──> Blob/get in ranges, or else the download URL, new connection

The second attempt is final: its bytes are accepted or refused.
"""

import logging
from collections import OrderedDict
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from jmapfs.blob_keys import split_content_key
from jmapfs.content import confirmation
from jmapfs.content.confirmation import MARGIN_BYTES, Evidence, Examination, Route
from jmapfs.content.division import Blob, SizedBlob
from jmapfs.errors import (
    AuthenticationError,
    BlobMismatchError,
    BlobNotFoundError,
    DeadlineError,
    JmapfsError,
    ServerError,
    UnreachableError,
)
from jmapfs.jmap.batches import BlobGetLimits
from jmapfs.jmap.blob_get import BlobDigest

_log = logging.getLogger(__name__)

# SHA-1 takes 0.6 ms for 1 MiB, which is too long for the event loop.
_HASHED_IN_LOOP_BYTES: Final = 256 * 1024
_CHUNK_BYTES: Final = 1024 * 1024
# Doubts about contents of batches that were not fetched alone yet. One takes about 300 bytes.
_MOST_DOUBTS: Final = 4096

_T = TypeVar("_T")

Receive = Callable[[AsyncIterator[bytes]], Awaitable[_T]]
"""Receives a content in chunks of about 1 MiB, and returns what it has made of the content."""


class ContentStream(Protocol):
    """The chunks of a content. `content_type` is known after the first one; empty if there is none.

    It is a media type in lower case, without parameters.
    """

    content_type: str

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the iterator."""

    async def __anext__(self) -> bytes:
        """Return the next chunk."""


class BlobSource(Protocol):
    """Downloads whole blobs by content key; `deadline` is in seconds, for the whole transfer.

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
        self, blobs: Sequence[tuple[str, int]], *, deadline: float
    ) -> dict[str, bytes]:
        """Request blobs (key, stated size) together; return the contents that arrived whole.

        Returns no content if the server does not have Blob/get.
        """

    def stream_blob(
        self, key: str, *, fresh: bool = False, deadline: float
    ) -> AbstractAsyncContextManager[ContentStream]:
        """Open a blob for reading from the download URL; if `fresh`, over a new connection."""

    def stream_ranges(
        self, key: str, size: int, *, deadline: float
    ) -> AbstractAsyncContextManager[ContentStream]:
        """Open a blob of about `size` bytes for reading by Blob/get, if `batch_limits` is set."""

    async def stated_sizes(self, keys: Collection[str]) -> Mapping[str, int]:
        """Ask the server for the sizes that it states now; return those of the blobs it shows.

        A blob is shown if an email that has it in the index still has it, with the same time.
        """

    async def digests(self, keys: Collection[str]) -> Mapping[str, BlobDigest]:
        """Return the digests that the server offers; none if it does not offer any."""

    def describe(self, key: str) -> str:
        """Return a name for a blob in messages: the path of a file and the id of its email."""


class _InDoubtError(BlobMismatchError):
    """The bytes of an attempt are not accepted yet."""

    def __init__(self, reason: str, evidence: Evidence) -> None:
        super().__init__(reason)
        self.evidence = evidence


class _SizeQuestion:
    """A request for stated sizes that several tasks share."""

    def __init__(self) -> None:
        self.keys: dict[str, None] = {}
        self.answer: Mapping[str, int] | None = None
        self.error: JmapfsError | None = None


class _SizeQuestions:
    """Asks for stated sizes. While one request is under way, all others wait for the next one."""

    def __init__(self, source: BlobSource) -> None:
        self._source = source
        self._lock = trio.Lock()
        self._next = _SizeQuestion()

    async def ask(self, keys: Collection[str]) -> Mapping[str, int]:
        """Return the sizes that the server states for blobs; the request begins after this call."""
        question = self._next
        question.keys.update(dict.fromkeys(keys))
        async with self._lock:
            # If the task that has begun the request was cancelled, the next task repeats it.
            if question.answer is None and question.error is None:
                if question is self._next:
                    self._next = _SizeQuestion()
                try:
                    question.answer = await self._source.stated_sizes(list(question.keys))
                except JmapfsError as error:
                    question.error = error
        if question.answer is None:
            raise question.error or RuntimeError("a question without an answer")
        return question.answer


@dataclass(slots=True)
class _Attempt:
    """One download of a blob alone; `judge` raises an error if the bytes are not accepted."""

    blob: SizedBlob
    route: Route
    fresh: bool
    until: float
    sha1: bool
    sha256: bool
    judge: Callable[[Evidence], Awaitable[None]]
    is_accepted: bool = False


class Downloader:
    """Downloads blobs from `source`, and returns accepted content only.

    `limiter` bounds its threads.
    """

    def __init__(self, source: BlobSource, limiter: trio.CapacityLimiter) -> None:
        self.source = source
        self._limiter = limiter
        self._questions = _SizeQuestions(source)
        self._doubts: OrderedDict[str, Evidence] = OrderedDict()

    async def fetch_batch(
        self,
        batch: Sequence[Blob],
        write: Callable[[list[tuple[Blob, bytes]]], Awaitable[None]],
        *,
        deadline: float,
    ) -> Sequence[Blob]:
        """Fetch blobs with one request, `write` the accepted ones, and return the others.

        The caller fetches the others alone. If there is only one blob, it is returned.

        Raises:
            UnreachableError, AuthenticationError: other requests would fail as well.
        """
        if len(batch) < 2:
            return batch
        until = trio.current_time() + deadline
        try:
            contents = await self.source.download_batch(
                [(blob.content_key, blob.size) for blob in batch], deadline=deadline
            )
            arrived = [
                (blob, contents[blob.content_key]) for blob in batch if blob.content_key in contents
            ]
            accepted = await self._accept(arrived, until)
        except (UnreachableError, AuthenticationError):
            raise
        except JmapfsError as error:
            _log.warning("a batch of blobs is fetched one by one: %s", error)
            return batch
        if accepted:
            await write(accepted)
        written = {blob.content_key for blob, _ in accepted}
        return [blob for blob in batch if blob.content_key not in written]

    async def fetch(self, blob: SizedBlob, receive: Receive[_T], *, deadline: float) -> _T:
        """Fetch a small or a large blob alone; return what `receive` returns.

        `receive` is called again if the first attempt is in doubt. The iteration over the chunks
        ends without an error only if the content is accepted. If it raises an error, `receive` must
        keep nothing, and pass the error on. The content may have another length than `blob.size`.

        Raises:
            BlobMismatchError: the content is refused.
            BlobNotFoundError: the server no longer has the blob.
            JmapfsError: what the source raises.
        """
        until = trio.current_time() + deadline
        first = self._doubts.pop(blob.content_key, None)
        if first is None:
            try:
                return await self._first_attempt(blob, receive, until)
            except BlobMismatchError as error:
                _log.info("%s is fetched again: %s", self._name(blob), error)
                first = error.evidence if isinstance(error, _InDoubtError) else None
        return await self._second_attempt(blob, receive, until, first)

    async def _first_attempt(self, blob: SizedBlob, receive: Receive[_T], until: float) -> _T:
        sha1 = self._sha1(blob)

        async def judge(evidence: Evidence) -> None:
            reason = confirmation.doubt(evidence, blob.size, sha1)
            if reason is None and sha1 is None:
                size = await self._stated_size(blob, until)
                if size != evidence.length:
                    reason = f"the server now states {size:,} bytes"
            if reason is not None:
                raise _InDoubtError(reason, evidence)

        return await self._attempt(
            receive,
            _Attempt(
                blob,
                Route.DOWNLOAD,
                fresh=False,
                until=until,
                sha1=sha1 is not None,
                sha256=sha1 is None,
                judge=judge,
            ),
        )

    async def _second_attempt(
        self, blob: SizedBlob, receive: Receive[_T], until: float, first: Evidence | None
    ) -> _T:
        sha1 = self._sha1(blob)
        stated_before = blob.size
        digest: BlobDigest | None = None
        if sha1 is None:
            stated_before = await self._stated_size(blob, until)
            digest = await self._digest(blob, until)

        async def judge(evidence: Evidence) -> None:
            stated = blob.size
            if sha1 is None:
                # Ask after the download as well: the server may have been reset meanwhile.
                stated = await self._stated_size(blob, until)
            reason = confirmation.refusal(
                first,
                evidence,
                stated,
                sha1=sha1,
                digest=digest,
                repeated=stated == stated_before,
            )
            if reason is not None:
                raise BlobMismatchError(reason)
            if evidence.length != stated:
                _log.warning(
                    "%s has %d bytes, confirmed by a second download; the server states %d",
                    self._name(blob),
                    evidence.length,
                    stated,
                )

        failure: ServerError | None = None
        for route, fresh in self._other_routes(first):
            attempt = _Attempt(blob, route, fresh, until, sha1=True, sha256=True, judge=judge)
            try:
                return await self._attempt(receive, attempt)
            except BlobMismatchError:
                raise
            except ServerError as error:
                # Blob/get may be unable to return this blob, or a part of it.
                failure = error
        raise failure or RuntimeError("there is no route")

    def _other_routes(self, first: Evidence | None) -> Iterator[tuple[Route, bool]]:
        """Yield the routes of a second attempt, each with whether a new connection is needed."""
        if first is not None and first.route is Route.BLOB_GET:
            yield Route.DOWNLOAD, False
            return
        if self.source.batch_limits is not None:
            yield Route.BLOB_GET, False
        yield Route.DOWNLOAD, True

    async def _attempt(self, receive: Receive[_T], attempt: _Attempt) -> _T:
        async with aclosing(self._judged(attempt)) as chunks:
            received = await receive(chunks)
        if not attempt.is_accepted:
            raise RuntimeError("a content was used before it was accepted")
        return received

    async def _judged(self, attempt: _Attempt) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a content; the last chunk comes when the content is accepted."""
        examination = Examination(attempt.route, sha1=attempt.sha1, sha256=attempt.sha256)
        largest = attempt.blob.size + MARGIN_BYTES
        parts: list[bytes] = []
        joined = 0
        async with self._open(attempt) as stream:
            async for part in stream:
                examination.update(part)
                if examination.length > largest:
                    break
                parts.append(part)
                joined += len(part)
                if joined >= _CHUNK_BYTES:
                    yield b"".join(parts)
                    parts.clear()
                    joined = 0
        await attempt.judge(
            examination.evidence(
                content_type=stream.content_type, too_long=examination.length > largest
            )
        )
        attempt.is_accepted = True
        if parts:
            yield b"".join(parts)

    def _open(self, attempt: _Attempt) -> AbstractAsyncContextManager[ContentStream]:
        key, deadline = attempt.blob.content_key, max(0.0, attempt.until - trio.current_time())
        if attempt.route is Route.BLOB_GET:
            return self.source.stream_ranges(key, attempt.blob.size, deadline=deadline)
        return self.source.stream_blob(key, fresh=attempt.fresh, deadline=deadline)

    async def _accept(
        self, arrived: Sequence[tuple[Blob, bytes]], until: float
    ) -> list[tuple[Blob, bytes]]:
        """Return the contents of a batch that are accepted, and note the doubts."""
        examine = partial(_examine, [(blob, data, self._sha1(blob)) for blob, data in arrived])
        if sum(len(data) for _, data in arrived) <= _HASHED_IN_LOOP_BYTES:
            doubts = examine()
        else:
            doubts = await trio.to_thread.run_sync(
                examine, limiter=self._limiter, abandon_on_cancel=True
            )
        for key, evidence in doubts.items():
            self._doubts[key] = evidence
            while len(self._doubts) > _MOST_DOUBTS:
                self._doubts.popitem(last=False)
        good = [(blob, data) for blob, data in arrived if blob.content_key not in doubts]
        asked = [blob.content_key for blob, _ in good if self._sha1(blob) is None]
        if not asked:
            return good
        stated = await self._ask(asked, until)
        unasked = {blob.content_key for blob, _ in good}.difference(asked)
        return [
            (blob, data)
            for blob, data in good
            if blob.content_key in unasked or stated.get(blob.content_key) == len(data)
        ]

    async def _stated_size(self, blob: SizedBlob, until: float) -> int:
        """Return the size that the server states; raise BlobNotFoundError if the mail is gone."""
        size = (await self._ask([blob.content_key], until)).get(blob.content_key)
        if size is None:
            raise BlobNotFoundError("the server no longer has this mail")
        return size

    async def _ask(self, keys: Collection[str], until: float) -> Mapping[str, int]:
        with trio.move_on_at(until):
            return await self._questions.ask(keys)
        raise DeadlineError("the server did not confirm a mail in time")

    async def _digest(self, blob: SizedBlob, until: float) -> BlobDigest | None:
        key = blob.content_key
        with trio.move_on_at(until):
            try:
                return (await self.source.digests([key])).get(key)
            except ServerError as error:
                _log.info("the server gives no digest of %s: %s", self._name(blob), error)
                return None
        raise DeadlineError("the server did not confirm a mail in time")

    def _sha1(self, blob: SizedBlob) -> bytes | None:
        if not self.source.blob_ids_are_sha1:
            return None
        return confirmation.sha1_of(split_content_key(blob.content_key)[1])

    def _name(self, blob: SizedBlob) -> str:
        return self.source.describe(blob.content_key)


def _examine(contents: Sequence[tuple[SizedBlob, bytes, bytes | None]]) -> dict[str, Evidence]:
    """Return the evidence of the contents that are in doubt, by key."""
    doubts: dict[str, Evidence] = {}
    for blob, data, sha1 in contents:
        evidence = _evidence_of(data, sha1=sha1 is not None, sha256=False)
        if confirmation.doubt(evidence, blob.size, sha1) is not None:
            doubts[blob.content_key] = _evidence_of(data, sha1=True, sha256=True)
    return doubts


def _evidence_of(data: bytes, *, sha1: bool, sha256: bool) -> Evidence:
    examination = Examination(Route.BLOB_GET, sha1=sha1, sha256=sha256)
    examination.update(data)
    return examination.evidence()


async def join_chunks(chunks: AsyncIterator[bytes]) -> bytes:
    """Return a content in memory; a `Receive` for small blobs."""
    return b"".join([chunk async for chunk in chunks])
