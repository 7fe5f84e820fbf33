"""Digests and ranges of blobs, by Blob/get (RFC 9404 §4.2).

A digest tells what the server has without downloading it. A server lists its digest algorithms in
the session. Cyrus 3.6 has none, but its blob ids contain the SHA-1 of the blob.

Ranges are a second way to download a blob, apart from the download URL. They are requested in
pieces, so that a response is never much larger than a piece.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import msgspec

from jmapfs.deadline import Deadline
from jmapfs.errors import (
    BlobMismatchError,
    BlobNotFoundError,
    MethodError,
    ProtocolError,
    RequestError,
    printable,
)
from jmapfs.jmap.answers import AnswerLimit
from jmapfs.jmap.api import DEFAULT_DEADLINE
from jmapfs.jmap.batches import (
    CAPABILITIES,
    MAX_BLOBS,
    UNSUPPORTED,
    BatchMethods,
    BlobGetResponse,
    blob_get_limit,
)
from jmapfs.jmap.http import Transport
from jmapfs.jmap.method_calls import MethodCall, is_too_large
from jmapfs.jmap.session import Session
from jmapfs.jmap.types import Id, R, UnsignedInt

DigestAlgorithm = Literal["sha-256", "sha"]
"""A name of RFC 9404 §4.2.1: SHA-256, or SHA-1."""

_DIGEST_BYTES: Mapping[DigestAlgorithm, int] = {"sha-256": 32, "sha": 20}
_PIECE_BYTES = 4 * 2**20
# A server that rejects even smaller pieces does not reject them for their size.
_SMALLEST_PIECE_BYTES = 2**14
_SHA1_BLOB_ID = re.compile(r"G([0-9a-f]{40})")


@dataclass(frozen=True, slots=True)
class BlobDigest:
    """The digest of a whole blob, and its size in bytes. The size is None if it is not known."""

    algorithm: DigestAlgorithm
    digest: bytes
    size: int | None


def sha1_of(blob_id: str) -> bytes | None:
    """Return the SHA-1 in a blob id of Cyrus, or None. Only for servers that make such ids."""
    match = _SHA1_BLOB_ID.fullmatch(blob_id)
    return bytes.fromhex(match[1]) if match else None


class _DigestedBlob(msgspec.Struct, frozen=True):
    """A blob in a response. msgspec decodes base64 into bytes."""

    id: Id
    sha256: bytes | None = msgspec.field(name="digest:sha-256", default=None)
    sha: bytes | None = msgspec.field(name="digest:sha", default=None)
    size: UnsignedInt | None = None


class BlobRange(msgspec.Struct, frozen=True):
    """A range of a blob. `size` is the size of the whole blob in bytes."""

    id: Id
    size: UnsignedInt
    data: bytes = msgspec.field(name="data:asBase64")


class RangeStream:
    """An asynchronous iterator over the pieces of a blob, to be used by one task.

    `content_type` is always empty, and `announced_length` None: Blob/get returns neither. The
    iteration continues up to the size in the responses, which may differ from the expected size.
    """

    def __init__(
        self, methods: BlobGetMethods, blob_id: str, size: int, deadline: Deadline
    ) -> None:
        self.content_type = ""
        self.announced_length: int | None = None
        self._methods = methods
        self._blob_id = blob_id
        self._expected = size
        self._deadline = deadline
        self._piece_bytes = _PIECE_BYTES
        self._returned = 0
        self._total: int | None = None

    def __aiter__(self) -> RangeStream:
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes, at least one.

        Raises:
            BlobNotFoundError: the server does not have the blob.
            BlobMismatchError: the size of the blob is not the same in two responses.
            ProtocolError: a response does not contain the requested range.
            JmapfsError: any error of Api.request.
        """
        if self._returned == self._total:
            raise StopAsyncIteration
        piece, length = await self._request()
        if self._total not in {None, piece.size}:
            raise BlobMismatchError(f"the {self._name} has another size than a moment ago")
        self._total = piece.size
        wanted = max(0, min(length, piece.size - self._returned))
        if len(piece.data) != wanted:
            raise ProtocolError(
                f"the server's response to Blob/get has {len(piece.data):,} bytes of the "
                f"{self._name} instead of {wanted:,}"
            )
        self._returned += wanted
        self._methods.traffic.bytes += wanted
        self._methods.traffic.blobs += self._returned == self._total
        if not wanted:
            raise StopAsyncIteration
        return piece.data

    async def aclose(self) -> None:
        """Do nothing: no response is open between two pieces."""

    async def _request(self) -> tuple[BlobRange, int]:
        """Return the next piece, and the length that was requested."""
        end = self._expected if self._total is None else self._total
        while True:
            # Cyrus rejects a length of 0.
            length = max(1, min(self._piece_bytes, end - self._returned))
            try:
                piece = await self._methods.get_range(
                    self._blob_id, self._returned, length, deadline=self._deadline
                )
            except (MethodError, RequestError) as error:
                if not is_too_large(error) or length <= _SMALLEST_PIECE_BYTES:
                    raise
                self._piece_bytes = length // 2
            else:
                return piece, length

    @property
    def _name(self) -> str:
        return f"blob {printable(self._blob_id, 80)}"


class BlobGetMethods(BatchMethods):
    """Digests and ranges. Each call is one request in the budget of the transport."""

    def __init__(self, transport: Transport, session: Session, account_id: str) -> None:
        super().__init__(transport, session, account_id)
        self._rejected: set[str] = set()
        self._max_digests = MAX_BLOBS

    @property
    def digest_algorithms(self) -> tuple[DigestAlgorithm, ...]:
        """The algorithms that the server lists for Blob/get and that jmapfs knows, best first.

        Cyrus 3.6 lists none, because it has none.
        """
        if not self.has_blob_get:
            return ()
        listed: set[object] = set()
        for name in CAPABILITIES:
            for capabilities in (self.account.capabilities, self.session.capabilities):
                details = capabilities.get(name)
                if isinstance(details, dict):
                    algorithms = details.get("supportedDigestAlgorithms")
                    if isinstance(algorithms, list):
                        listed.update(each for each in algorithms if isinstance(each, str))
        return tuple(each for each in _DIGEST_BYTES if each in listed - self._rejected)

    @property
    def can_digest(self) -> bool:
        """Whether `find_digests` can return anything for the mail of this account."""
        return bool(self.digest_algorithms) or self.blob_ids_are_sha1

    async def blob_digests(
        self, ids: Iterable[str], *, deadline: Deadline | None = None
    ) -> dict[str, BlobDigest]:
        """Return the digests of blobs, by blob id. See `find_digests`."""
        digests, _ = await self.find_digests(ids, deadline=deadline)
        return digests

    async def find_digests(
        self, ids: Iterable[str], *, deadline: Deadline | None = None
    ) -> tuple[dict[str, BlobDigest], list[str]]:
        """Return the digests of blobs, by blob id, and the ids that the server does not have.

        A blob for which the server gives no digest is in neither of them. If the server has no
        digests at all, they come from ids that contain a SHA-1, and the server is only asked
        whether it has the blobs. Several requests are sent in turn if one cannot have all ids. All
        together end at the `deadline`. Raises the errors of Api.request.
        """
        deadline = deadline or Deadline(DEFAULT_DEADLINE)
        pending = list(dict.fromkeys(ids))
        digests: dict[str, BlobDigest] = {}
        missing: list[str] = []
        while pending and self.can_digest:
            algorithm = next(iter(self.digest_algorithms), None)
            if not self.has_blob_get:
                digests.update(_digests_in_ids(pending, {}))
                break
            batch = pending[: max(1, min(self._max_digests, self.max_objects_in_get))]
            try:
                response = await self._get_digests(batch, algorithm, deadline)
            except (MethodError, RequestError) as error:
                self._learn_from(error, algorithm, len(batch))
                continue
            found = {blob.id: blob for blob in response.items}
            if algorithm is None:
                digests.update(_digests_in_ids([i for i in batch if i in found], found))
            else:
                digests.update(_digests_in(batch, found, algorithm))
            absent = set(response.not_found or ()) - found.keys()
            missing += [i for i in batch if i in absent]
            pending = pending[len(batch) :]
        return digests, missing

    @asynccontextmanager
    async def stream_ranges(
        self, blob_id: str, size: int, *, deadline: Deadline | None = None
    ) -> AsyncIterator[RangeStream]:
        """Open a blob for reading piece by piece, by Blob/get. `size` is the expected size.

        The last piece must arrive before the `deadline`. The content is whole only if the
        iteration reaches its end. The iteration raises the errors of RangeStream. It raises
        MethodError if the server has no Blob/get (`batch_limits` is None).
        """
        yield RangeStream(self, blob_id, size, deadline or Deadline(DEFAULT_DEADLINE))

    async def get_range(
        self, blob_id: str, offset: int, length: int, *, deadline: Deadline
    ) -> BlobRange:
        """Return at most `length` bytes of a blob, from `offset` on, with one request."""
        arguments = {
            "ids": [blob_id],
            "properties": ["data:asBase64", "size"],
            "offset": offset,
            "length": length,
        }
        response = await self._blob_get(
            arguments,
            BlobGetResponse[BlobRange],
            deadline,
            blob_get_limit([length]),
        )
        for piece in response.items:
            if piece.id == blob_id:
                return piece
        name = f"blob {printable(blob_id, 80)}"
        if blob_id in (response.not_found or ()):
            raise BlobNotFoundError(f"the server does not have the {name}")
        raise ProtocolError(f"the server answers Blob/get without the {name}")

    async def _get_digests(
        self, ids: Sequence[str], algorithm: str | None, deadline: Deadline
    ) -> BlobGetResponse[_DigestedBlob]:
        properties = ["size"] if algorithm is None else [f"digest:{algorithm}", "size"]
        arguments = {"ids": ids, "properties": properties}
        return await self._blob_get(arguments, BlobGetResponse[_DigestedBlob], deadline)

    async def _blob_get(
        self,
        arguments: Mapping[str, object],
        type_: type[R],
        deadline: Deadline,
        limit: AnswerLimit | None = None,
    ) -> R:
        call = MethodCall(
            "Blob/get", {"accountId": self.account_id, **arguments}, using=CAPABILITIES
        )
        [response] = await self.request([call], deadline=deadline, limit=limit)
        return await self._decode(response, type_)

    def _learn_from(
        self, error: MethodError | RequestError, algorithm: str | None, count: int
    ) -> None:
        """Adapt to a server that rejects digests, or so many at once. Otherwise raise the error."""
        if is_too_large(error) and count > 1:
            self._max_digests = count // 2
        elif algorithm is not None and error.kind in UNSUPPORTED:
            self._rejected.add(algorithm)
        else:
            raise error


def _digests_in(
    ids: Iterable[str], found: Mapping[str, _DigestedBlob], algorithm: DigestAlgorithm
) -> Iterator[tuple[str, BlobDigest]]:
    for id_ in ids:
        if (blob := found.get(id_)) is not None:
            digest = blob.sha256 if algorithm == "sha-256" else blob.sha
            if digest is not None and len(digest) == _DIGEST_BYTES[algorithm]:
                yield id_, BlobDigest(algorithm, digest, blob.size)


def _digests_in_ids(
    ids: Iterable[str], found: Mapping[str, _DigestedBlob]
) -> Iterator[tuple[str, BlobDigest]]:
    for id_ in ids:
        sha1 = sha1_of(id_)
        if sha1 is not None:
            blob = found.get(id_)
            size = None if blob is None else blob.size
            yield id_, BlobDigest("sha", sha1, size)
