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
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import trio

from jmapfs.blob_keys import split_content_key
from jmapfs.content import confirmation
from jmapfs.content.confirmation import HEAD_BYTES, Evidence, Examination, Route
from jmapfs.content.division import Blob, SizedBlob
from jmapfs.content.server_blobs import BlobSource, ContentStream, StatedValues
from jmapfs.deadline import Deadline
from jmapfs.errors import (
    AuthenticationError,
    BlobMismatchError,
    BlobNotFoundError,
    JmapfsError,
    ServerError,
    UnreachableError,
)
from jmapfs.jmap.blob_get import BlobDigest, sha1_of
from jmapfs.jmap.emails import EmailValues

_log = logging.getLogger(__name__)

# SHA-1 takes 0.6 ms for 1 MiB, which is too long for the event loop.
_HASHED_IN_LOOP_BYTES: Final = 256 * 1024
_CHUNK_BYTES: Final = 1024 * 1024
# The same if readers get the beginning before the end has arrived. The kernel reads about as much.
_EARLY_CHUNK_BYTES: Final = 128 * 1024
# Doubts about contents of batches that were not fetched alone yet. One takes about 300 bytes.
_MOST_DOUBTS: Final = 4096
_UNCONFIRMED: Final = "the server did not confirm a mail in time"

_T = TypeVar("_T")

Receive = Callable[[AsyncIterator[bytes]], Awaitable[_T]]
"""Receives a content in chunks of about 1 MiB, and returns what it has made of the content."""


class _InDoubtError(BlobMismatchError):
    """The bytes of an attempt are not accepted yet."""

    def __init__(self, reason: str, evidence: Evidence) -> None:
        super().__init__(reason)
        self.evidence = evidence


@dataclass(slots=True)
class _Attempt:
    """One download of a blob alone; `judge` raises an error if the bytes are not accepted.

    `confirm_early` is called as soon as the beginning is confirmed, before its first chunk.
    """

    blob: SizedBlob
    route: Route
    fresh: bool
    deadline: Deadline
    sha1: bool
    sha256: bool
    judge: Callable[[Evidence], Awaitable[None]]
    confirm_early: Callable[[], None] | None = None
    is_early: bool = False
    is_accepted: bool = False


class Downloader:
    """Downloads blobs from `source`, and returns accepted content only.

    `limiter` bounds its threads.
    """

    def __init__(self, source: BlobSource, limiter: trio.CapacityLimiter) -> None:
        self.source = source
        self._limiter = limiter
        self._questions = StatedValues(source)
        self._doubts: OrderedDict[str, Evidence] = OrderedDict()

    async def fetch_batch(
        self,
        batch: Sequence[Blob],
        write: Callable[[list[tuple[Blob, bytes]]], Awaitable[None]],
        *,
        deadline: Deadline,
    ) -> Sequence[Blob]:
        """Fetch blobs with one request, `write` the accepted ones, and return the others.

        The caller fetches the others alone. If there is only one blob, it is returned.

        Raises:
            UnreachableError, AuthenticationError: other requests would fail as well.
        """
        if len(batch) < 2:
            return batch
        try:
            contents = await self.source.download_batch(
                [(blob.content_key, blob.size) for blob in batch], deadline=deadline
            )
            arrived = [
                (blob, contents[blob.content_key]) for blob in batch if blob.content_key in contents
            ]
            accepted = await self._accept(arrived, deadline)
        except (UnreachableError, AuthenticationError):
            raise
        except JmapfsError as error:
            _log.info("a batch of blobs is fetched one by one: %s", error)
            return batch
        if accepted:
            await write(accepted)
        written = {blob.content_key for blob, _ in accepted}
        return [blob for blob in batch if blob.content_key not in written]

    async def fetch(
        self,
        blob: SizedBlob,
        receive: Receive[_T],
        *,
        deadline: Deadline,
        confirm_early: Callable[[], None] | None = None,
    ) -> _T:
        """Fetch a small or a large blob alone; return what `receive` returns.

        `receive` is called again if the first attempt is in doubt. The iteration over the chunks
        ends without an error only if the content is accepted. If it raises an error, `receive` must
        keep nothing, and pass the error on. The content may have another length than `blob.size`.

        If the beginning is confirmed before the end has arrived, `confirm_early` is called. The
        chunks may be given to readers from then on, and there is no second attempt: its bytes could
        be others.

        Raises:
            BlobMismatchError: the content is refused.
            BlobNotFoundError: the server no longer has the blob.
            JmapfsError: what the source raises.
        """
        first = self._doubts.pop(blob.content_key, None)
        if first is None:
            attempt = self._first_attempt(blob, deadline, confirm_early)
            try:
                return await self._attempt(receive, attempt)
            except BlobMismatchError as error:
                if attempt.is_early:
                    raise
                _log.info("%s is fetched again: %s", self._name(blob), error)
                first = error.evidence if isinstance(error, _InDoubtError) else None
        return await self._second_attempt(blob, receive, deadline, first)

    def _first_attempt(
        self, blob: SizedBlob, deadline: Deadline, confirm_early: Callable[[], None] | None
    ) -> _Attempt:
        sha1 = self._sha1(blob)

        async def judge(evidence: Evidence) -> None:
            reason = confirmation.doubt(evidence, blob.size, sha1)
            if reason is None and sha1 is None:
                stated = await self._stated(blob, deadline)
                reason = confirmation.contradiction(evidence, stated)
            if reason is not None:
                raise _InDoubtError(reason, evidence)

        return _Attempt(
            blob,
            Route.DOWNLOAD,
            fresh=False,
            deadline=deadline,
            sha1=sha1 is not None,
            sha256=sha1 is None,
            judge=judge,
            # A SHA-1 proves nothing before the last byte.
            confirm_early=confirm_early if sha1 is None else None,
        )

    async def _second_attempt(
        self, blob: SizedBlob, receive: Receive[_T], deadline: Deadline, first: Evidence | None
    ) -> _T:
        sha1 = self._sha1(blob)
        before: EmailValues | None = None
        digest: BlobDigest | None = None
        if sha1 is None:
            before = await self._stated(blob, deadline)
            digest = await self._digest(blob, deadline)

        async def judge(evidence: Evidence) -> None:
            stated: EmailValues | None = None
            if sha1 is None:
                # Ask after the download as well: the server may have been reset meanwhile.
                stated = await self._stated(blob, deadline)
            reason = confirmation.refusal(
                first,
                evidence,
                blob.size,
                stated,
                sha1=sha1,
                digest=digest,
                repeated=stated is not None and before is not None and stated.size == before.size,
            )
            if reason is not None:
                raise BlobMismatchError(reason)
            size = blob.size if stated is None else stated.size
            if evidence.length != size:
                _log.info(
                    "%s has %d bytes, confirmed by a second download; the server states %d",
                    self._name(blob),
                    evidence.length,
                    size,
                )

        failure: ServerError | None = None
        for route, fresh in self._other_routes(first):
            attempt = _Attempt(blob, route, fresh, deadline, sha1=True, sha256=True, judge=judge)
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
        examination = Examination(
            attempt.route,
            message_ids=attempt.sha256,
            sha1=attempt.sha1,
            sha256=attempt.sha256,
        )
        largest = confirmation.most_bytes(attempt.blob.size)
        chunk_bytes = _CHUNK_BYTES
        parts: list[bytes] = []
        joined = 0
        async with self._open(attempt) as stream:
            async for part in stream:
                if len(part) <= _HASHED_IN_LOOP_BYTES:
                    examination.update(part)
                else:
                    await trio.to_thread.run_sync(
                        examination.update, part, limiter=self._limiter, abandon_on_cancel=True
                    )
                if examination.length > largest:
                    break
                parts.append(part)
                joined += len(part)
                if attempt.confirm_early is not None and examination.length >= HEAD_BYTES:
                    confirm_early, attempt.confirm_early = attempt.confirm_early, None
                    if await self._is_confirmed_early(attempt, examination, stream):
                        attempt.is_early = True
                        chunk_bytes = _EARLY_CHUNK_BYTES
                        confirm_early()
                if joined >= chunk_bytes:
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

    async def _is_confirmed_early(
        self, attempt: _Attempt, examination: Examination, stream: ContentStream
    ) -> bool:
        """Return whether the beginning of a content is that of the mail.

        The announced length takes the place of the length, and all other rules are the same.
        """
        if stream.announced_length is None:
            return False
        evidence = replace(
            examination.evidence(content_type=stream.content_type), length=stream.announced_length
        )
        if confirmation.doubt(evidence, attempt.blob.size, None) is not None:
            return False
        stated = await self._stated(attempt.blob, attempt.deadline)
        return confirmation.contradiction(evidence, stated) is None

    def _open(self, attempt: _Attempt) -> AbstractAsyncContextManager[ContentStream]:
        key, deadline = attempt.blob.content_key, attempt.deadline
        if attempt.route is Route.BLOB_GET:
            return self.source.stream_ranges(key, attempt.blob.size, deadline=deadline)
        return self.source.stream_blob(key, fresh=attempt.fresh, deadline=deadline)

    async def _accept(
        self, arrived: Sequence[tuple[Blob, bytes]], deadline: Deadline
    ) -> list[tuple[Blob, bytes]]:
        """Return the contents of a batch that are accepted, and note the doubts."""
        contents = [(data, blob.size, self._sha1(blob)) for blob, data in arrived]
        examine = partial(confirmation.examine, contents)
        if sum(len(data) for _, data in arrived) <= _HASHED_IN_LOOP_BYTES:
            examined = examine()
        else:
            examined = await trio.to_thread.run_sync(
                examine, limiter=self._limiter, abandon_on_cancel=True
            )
        good: list[tuple[Blob, bytes]] = []
        unproven: dict[str, Evidence] = {}
        for (blob, data), (evidence, reason) in zip(arrived, examined, strict=True):
            if reason is not None:
                self._note_doubt(blob.content_key, evidence)
                continue
            good.append((blob, data))
            if self._sha1(blob) is None:
                unproven[blob.content_key] = evidence
        if not unproven:
            return good
        stated = await self._ask(unproven, deadline)
        refuted = {
            key
            for key, evidence in unproven.items()
            if key not in stated or confirmation.contradiction(evidence, stated[key])
        }
        return [(blob, data) for blob, data in good if blob.content_key not in refuted]

    def _note_doubt(self, key: str, evidence: Evidence) -> None:
        self._doubts[key] = evidence
        while len(self._doubts) > _MOST_DOUBTS:
            self._doubts.popitem(last=False)

    async def _stated(self, blob: SizedBlob, deadline: Deadline) -> EmailValues:
        """Return what the server states; raise BlobNotFoundError if the mail is gone."""
        stated = (await self._ask([blob.content_key], deadline)).get(blob.content_key)
        if stated is None:
            raise BlobNotFoundError("the server no longer has this mail")
        return stated

    async def _ask(self, keys: Collection[str], deadline: Deadline) -> Mapping[str, EmailValues]:
        with deadline.enforced(_UNCONFIRMED):
            return await self._questions.ask(keys)

    async def _digest(self, blob: SizedBlob, deadline: Deadline) -> BlobDigest | None:
        key = blob.content_key
        with deadline.enforced(_UNCONFIRMED):
            try:
                return (await self.source.digests([key])).get(key)
            except ServerError as error:
                _log.info("the server gives no digest of %s: %s", self._name(blob), error)
                return None

    def _sha1(self, blob: SizedBlob) -> bytes | None:
        if not self.source.blob_ids_are_sha1:
            return None
        return sha1_of(split_content_key(blob.content_key)[1])

    def _name(self, blob: SizedBlob) -> str:
        return self.source.describe(blob.content_key)


async def join_chunks(chunks: AsyncIterator[bytes]) -> bytes:
    """Return a content in memory; a `Receive` for small blobs."""
    return b"".join([chunk async for chunk in chunks])
