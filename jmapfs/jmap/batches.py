"""Downloads of many blobs in one request (Blob/get, RFC 9404 §4.2), where the server supports it.

A batch is only an optimisation. If the response does not contain a whole blob, the blob is left out
of the result. The caller then downloads it by itself, and that download reports what is wrong.

No server says how many bytes its response to Blob/get may have. So when it rejects a batch as too
large, the limit that the batch came closest to is halved: the number of blobs or their bytes. This
is independent of how many emails the server allows at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic

import msgspec
import trio

from jmapfs.errors import MethodError, ProtocolError, RequestError
from jmapfs.jmap.api import Api, MethodCall, MethodResponse, is_too_large
from jmapfs.jmap.http import Transport
from jmapfs.jmap.session import Session
from jmapfs.jmap.types import AccountResponse, Id, T, UnsignedInt, decode

BLOB = "urn:ietf:params:jmap:blob"
"""The capability of RFC 9404 §3.1."""

CYRUS_BLOB = "https://cyrusimap.org/ns/jmap/blob"
"""The name that Cyrus used for it before the RFC."""

_CAPABILITIES = frozenset({BLOB, CYRUS_BLOB})

# Measured with Cyrus on loopback and two or three calls in flight: 50 blobs per call give 5,000
# blobs a second, 200 give 7,000 and need half the CPU time of jmapfs, and 400 give no more than
# 200. Another download at the same time is delayed equally in all three cases. On a slow line that
# delay grows with the bytes of a batch, so MAX_BYTES is small.
MAX_BLOBS = 200
MAX_BYTES = 2**20

# The size of a request without ids, and of one id: 255 characters, two quotes and a comma. Ids that
# are not ASCII take more bytes; if the request is then too large, encoding it raises an error.
_REQUEST_BYTES = 1024
_ID_BYTES = 258
# Cyrus 3.6 returns the id always, and rejects it in `properties`.
_PROPERTIES = ("data:asBase64", "size")
# A response that is larger than expected by more than this is an error, to bound memory.
_MARGIN = 16 * 2**20
# The expected size of the JSON around the content of one blob.
_BLOB_OVERHEAD = 1024
# Errors that the next call would get too, because only the ids in the arguments change.
_UNSUPPORTED = frozenset(
    {"unknownMethod", "invalidArguments", "forbidden", "accountNotSupportedByMethod"}
)
_UNKNOWN_CAPABILITY = "urn:ietf:params:jmap:error:unknownCapability"


@dataclass(frozen=True, slots=True)
class BlobGetLimits:
    """How many blobs one call may request, at least 2, and how many bytes they may have in all."""

    blobs: int
    bytes: int


class _Blob(msgspec.Struct, frozen=True, rename="camel"):
    """A blob in a response. msgspec decodes base64 into bytes."""

    id: Id
    data: bytes | None = msgspec.field(name="data:asBase64", default=None)
    size: UnsignedInt | None = None
    is_truncated: bool | None = None


class _BlobGetResponse(AccountResponse, Generic[T], kw_only=True, rename="camel"):
    items: list[T] = msgspec.field(name="list")


class BatchMethods(Api):
    """Blob/get (RFC 9404 §4.2). In the request budget of the transport a batch is one request."""

    def __init__(self, transport: Transport, session: Session, account_id: str) -> None:
        super().__init__(transport, session, account_id)
        # Limits learned from rejected batches. They stay when the session is fetched again.
        self._max_blobs = MAX_BLOBS
        self._max_bytes = MAX_BYTES
        self._supported = True

    @property
    def batch_limits(self) -> BlobGetLimits | None:
        """How much to request with `download_batch` now; None if there is no Blob/get.

        It can shrink, or become None, with each batch.
        """
        if not self._supported or _CAPABILITIES.isdisjoint(self.session.capabilities):
            return None
        limits = self.session.limits
        fitting = (limits.max_size_request - _REQUEST_BYTES) // _ID_BYTES
        blobs = min(self._max_blobs, limits.max_objects_in_get, fitting)
        # A batch of one blob is slower than a download.
        return BlobGetLimits(blobs, self._max_bytes) if blobs >= 2 and self._max_bytes else None

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: float
    ) -> dict[str, bytes]:
        """Return the content of those of `blobs` that are received whole, by blob id.

        `blobs` are ids and expected sizes in bytes. Blobs within `batch_limits` are requested at
        once. More blobs, or a batch that the server rejects as too large, take several requests in
        turn. `deadline` limits the whole call, in seconds.

        The result lacks blobs that the server does not have, that it returns only in part, whose
        length differs from the size in the same response, that cannot be decoded, or that are
        larger than the limits. The caller has to download these one by one. The caller also has to
        compare the length of a content with the size in `blobs`. If the server turns out to have no
        Blob/get, the result is empty, and `batch_limits` is None from then on.

        Raises:
            ProtocolError: the response is not valid, or larger than expected by over 16 MiB.
            JmapfsError: what Api.request raises.
        """
        until = trio.current_time() + deadline
        pending = dict(blobs)
        found: dict[str, bytes] = {}
        while (limits := self.batch_limits) is not None and (batch := _first(pending, limits)):
            try:
                found.update(await self._get_blobs(batch, until - trio.current_time()))
            except (MethodError, RequestError) as error:
                self._learn(error, batch)
            else:
                for blob_id in batch:
                    del pending[blob_id]
        self.traffic.blobs += len(found)
        self.traffic.bytes += sum(map(len, found.values()))
        return found

    async def _get_blobs(self, batch: dict[str, int], deadline: float) -> dict[str, bytes]:
        # The call has no `offset` and no `length`: with either, Cyrus reports the blob as
        # truncated.
        call = MethodCall(
            "Blob/get",
            {"accountId": self.account_id, "ids": list(batch), "properties": _PROPERTIES},
            using=_CAPABILITIES,
        )
        largest = sum(size * 4 // 3 + _BLOB_OVERHEAD for size in batch.values()) + _MARGIN
        [response] = await self.request([call], deadline=deadline, largest_response=largest)
        return _whole(batch, self._decode_blobs(response))

    def _decode_blobs(self, response: MethodResponse) -> list[_Blob]:
        try:
            # Decoding takes 1 ms per MiB. It runs in the event loop because msgspec holds the GIL
            # meanwhile: a worker thread would block the loop for the same time.
            return self._decode(response, _BlobGetResponse[_Blob]).items
        except ProtocolError:
            # If one blob cannot be decoded, the others are still used.
            return list(_valid(self._decode(response, _BlobGetResponse[msgspec.Raw]).items))

    def _learn(self, error: MethodError | RequestError, batch: dict[str, int]) -> None:
        """Lower the limits after a rejection; raise the error if it is about something else."""
        if error.kind in _UNSUPPORTED | {_UNKNOWN_CAPABILITY}:
            self._supported = False
            return
        if not is_too_large(error):
            raise error
        blobs, size = len(batch), sum(batch.values())
        by_count = blobs > 1 and blobs * self._max_bytes >= size * self._max_blobs
        # A rejected HTTP request has too many ids; a rejected method may have too many bytes.
        if isinstance(error, RequestError) or by_count:
            self._max_blobs = min(self._max_blobs, blobs // 2)
        else:
            self._max_bytes = min(self._max_bytes, size // 2)


def _first(pending: dict[str, int], limits: BlobGetLimits) -> dict[str, int]:
    """Return the first of `pending` that fit into one batch."""
    batch: dict[str, int] = {}
    left = limits.bytes
    for blob_id, size in pending.items():
        if size > limits.bytes:
            continue
        if size > left or len(batch) == limits.blobs:
            break
        batch[blob_id] = size
        left -= size
    return batch


def _valid(items: Iterable[msgspec.Raw]) -> Iterator[_Blob]:
    for item in items:
        with suppress(ProtocolError):
            yield decode(item, _Blob, "a blob in the server's response to Blob/get")


def _whole(requested: Iterable[str], blobs: Iterable[_Blob]) -> dict[str, bytes]:
    """Return the blobs that were requested and are whole; duplicates must be equal."""
    wanted = set(requested)
    found: dict[str, bytes] = {}
    for blob in blobs:
        if blob.id not in wanted:
            continue
        whole = blob.data is not None and len(blob.data) == blob.size and not blob.is_truncated
        if blob.data is None or not whole or found.setdefault(blob.id, blob.data) != blob.data:
            wanted.discard(blob.id)
            found.pop(blob.id, None)
    return found
