"""Downloads of many blobs in one request (Blob/get, RFC 9404 §4.2), where the server supports it.

A batch is only an optimisation. If the response does not contain a whole blob, the blob is left out
of the result. The caller then downloads the blob by itself. That download reports what is wrong.

No server says how many bytes its response to Blob/get may have. So two limits are learned from
rejections: the number of blobs in a batch, and their bytes. If the server rejects a batch as too
large, the limit that the batch came closest to is halved. The limits for emails do not change.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic

import msgspec

from jmapfs.deadline import Deadline
from jmapfs.errors import MethodError, ProtocolError, RequestError
from jmapfs.jmap.answers import AnswerLimit, run_decoder
from jmapfs.jmap.api import Api
from jmapfs.jmap.http import LONGEST_WAIT, Transport
from jmapfs.jmap.method_calls import MethodCall, MethodResponse, is_too_large
from jmapfs.jmap.response import RequestKind
from jmapfs.jmap.session import Session
from jmapfs.jmap.types import AccountResponse, Id, T, UnsignedInt, decode

BLOB = "urn:ietf:params:jmap:blob"
"""The capability of RFC 9404 §3.1."""

CYRUS_BLOB = "https://cyrusimap.org/ns/jmap/blob"
"""The name that Cyrus used for it before the RFC."""

CAPABILITIES = frozenset({BLOB, CYRUS_BLOB})
"""Both names. A server usually has one of them."""

# Measured with Cyrus on loopback and two or three calls in flight: 50 blobs per call give 5,000
# blobs a second. 200 give 7,000, and jmapfs uses half the CPU time. 400 are not faster than 200.
# Another download at the same time is delayed equally in all three cases. On a slow line this delay
# grows with the bytes of a batch, so MAX_BYTES is small.
MAX_BLOBS = 200
MAX_BYTES = 2**20

# The bytes of a request without ids, and of one id (255 characters, two quotes and a comma). An id
# that is not ASCII takes more bytes. If that makes a request too large, encoding it fails.
_REQUEST_BYTES = 1024
_ID_BYTES = 258
# Cyrus 3.6 always returns the id of a blob, and rejects `properties` that contain "id".
_PROPERTIES = ("data:asBase64", "size")
# To bound memory, a response may exceed its expected size only by this many bytes. If a blob is
# larger than the server states, it is downloaded alone.
_MARGIN = 2**20
# The expected size of the JSON around the content of one blob.
_BLOB_OVERHEAD = 1024
_BLOB_VALUES = 20
# After one of these errors no other call can succeed, because calls differ only in their ids.
UNSUPPORTED = frozenset(
    {"unknownMethod", "invalidArguments", "forbidden", "accountNotSupportedByMethod"}
)
_UNKNOWN_CAPABILITY = "urn:ietf:params:jmap:error:unknownCapability"


@dataclass(frozen=True, slots=True)
class BlobGetLimits:
    """The largest number of blobs in one call (at least 2), and of their bytes in all."""

    blobs: int
    bytes: int


class _Blob(msgspec.Struct, frozen=True, rename="camel"):
    """A blob in a response. msgspec decodes base64 into bytes."""

    id: Id
    data: bytes | None = msgspec.field(name="data:asBase64", default=None)
    size: UnsignedInt | None = None
    is_truncated: bool | None = None


class BlobGetResponse(AccountResponse, Generic[T], kw_only=True, rename="camel"):
    """The response to Blob/get. It has no state."""

    items: list[T] = msgspec.field(name="list")
    not_found: list[Id] | None = None


class BatchMethods(Api):
    """Blob/get (RFC 9404 §4.2). A batch is one request in the budget of the transport."""

    def __init__(self, transport: Transport, session: Session, account_id: str) -> None:
        super().__init__(transport, session, account_id)
        # Limits learned from rejected batches. They stay when the session is fetched again.
        self._max_blobs = MAX_BLOBS
        self._max_bytes = MAX_BYTES
        self._supported = True

    @property
    def has_blob_get(self) -> bool:
        """Whether the server has Blob/get, as far as jmapfs knows."""
        return self._supported and not CAPABILITIES.isdisjoint(self.session.capabilities)

    @property
    def batch_limits(self) -> BlobGetLimits | None:
        """The current limits for `download_batch`; None if the server has no Blob/get.

        They are also None while the server asks not to call methods for so long that a batch would
        fail: downloads are requests of another kind. The limits can shrink, or become None, with
        each batch.
        """
        if not self.has_blob_get or self.transport.pause(RequestKind.API) > LONGEST_WAIT:
            return None
        limits = self.session.limits
        fitting = (limits.max_size_request - _REQUEST_BYTES) // _ID_BYTES
        blobs = min(self._max_blobs, limits.max_objects_in_get, fitting)
        # A batch of one blob is slower than a download.
        return BlobGetLimits(blobs, self._max_bytes) if blobs >= 2 and self._max_bytes else None

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: Deadline
    ) -> dict[str, bytes]:
        """Download blobs. Return the content of each blob that arrives whole, by blob id.

        `blobs` contains ids and expected sizes in bytes. Blobs within `batch_limits` take one
        request. If there are more blobs, or the server rejects a batch as too large, several
        requests are sent in turn. All requests together end at the `deadline`.

        A blob is not in the result if the server does not have it or returns only a part of it, if
        its length differs from the size in the same response, if it cannot be decoded, or if it is
        larger than the limits. The caller has to download such blobs one by one. The caller also
        has to compare the length of each content with the size in `blobs`. If the server has no
        Blob/get, the result is empty, and `batch_limits` is None from then on.

        Raises:
            ProtocolError: a response is not valid, or over 1 MiB larger than expected.
            JmapfsError: any error of Api.request.
        """
        pending = dict(blobs)
        found: dict[str, bytes] = {}
        while (limits := self.batch_limits) is not None and (batch := _first(pending, limits)):
            try:
                found.update(await self._get_blobs(batch, deadline))
            except (MethodError, RequestError) as error:
                self._learn(error, batch)
            else:
                for blob_id in batch:
                    del pending[blob_id]
        self.traffic.blobs += len(found)
        self.traffic.bytes += sum(map(len, found.values()))
        return found

    async def _get_blobs(self, batch: dict[str, int], deadline: Deadline) -> dict[str, bytes]:
        # There is no `offset` or `length`: with them, Cyrus reports each blob as truncated.
        call = MethodCall(
            "Blob/get",
            {"accountId": self.account_id, "ids": list(batch), "properties": _PROPERTIES},
            using=CAPABILITIES,
        )
        [response] = await self.request(
            [call], deadline=deadline, limit=blob_get_limit(batch.values())
        )
        return _whole(batch, await self._decode_blobs(response))

    async def _decode_blobs(self, response: MethodResponse) -> list[_Blob]:
        try:
            return (await self._decode(response, BlobGetResponse[_Blob])).items
        except ProtocolError:
            # If one blob cannot be decoded, the others are still used.
            raw = await self._decode(response, BlobGetResponse[msgspec.Raw])
            return await run_decoder(lambda: list(_valid(raw.items)), response.size)

    def _learn(self, error: MethodError | RequestError, batch: dict[str, int]) -> None:
        """Lower the limits if the batch was too large. Raise the error if it has another cause."""
        if error.kind in UNSUPPORTED | {_UNKNOWN_CAPABILITY}:
            self._supported = False
            return
        if not is_too_large(error):
            raise error
        blobs, size = len(batch), sum(batch.values())
        by_count = blobs > 1 and blobs * self._max_bytes >= size * self._max_blobs
        # An HTTP request is rejected only for too many ids, a method call also for too many bytes.
        if isinstance(error, RequestError) or by_count:
            self._max_blobs = min(self._max_blobs, blobs // 2)
        else:
            self._max_bytes = min(self._max_bytes, size // 2)


def blob_get_limit(sizes: Collection[int]) -> AnswerLimit:
    """Return the limit for a response to Blob/get with so many bytes of each blob, in base64."""
    expected = sum(size * 4 // 3 + _BLOB_OVERHEAD for size in sizes)
    return AnswerLimit(expected + _MARGIN, (len(sizes) + 50) * _BLOB_VALUES)


def _first(pending: dict[str, int], limits: BlobGetLimits) -> dict[str, int]:
    """Return the next batch: the first of the `pending` blobs, as many as the limits allow."""
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
    """Return the requested blobs that are whole. If a blob came twice, both must be equal."""
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
