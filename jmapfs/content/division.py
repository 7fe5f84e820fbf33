"""Which blobs are requested together.

If the server has Blob/get, small blobs are fetched in batches. Large blobs are fetched alone.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, TypeVar

from jmapfs.cache.disk_cache import SMALL_BYTES
from jmapfs.jmap.batches import BlobGetLimits

# A blob above a quarter of a batch's bytes is fetched alone: other blobs must not wait for it.
_LARGE_PART: Final = 4
# Without Blob/get, one snapshot task fetches this many small blobs, one after the other.
_SINGLES: Final = 8


class SizedBlob(Protocol):
    """A blob to be fetched; `size` is in bytes, as the server states it."""

    @property
    def content_key(self) -> str:
        """Its key (`blob_keys`)."""

    @property
    def size(self) -> int:
        """Its stated size."""


Blob = TypeVar("Blob", bound=SizedBlob)


def take_batch(
    pending: deque[Blob],
    *,
    max_blobs: int,
    max_bytes: int,
    alone_above: int | None = None,
    accept: Callable[[Blob], bool] | None = None,
    begun: int = 0,
) -> list[Blob]:
    """Remove the next batch from `pending`, in order.

    A batch has at most `max_blobs` blobs and at most `max_bytes` bytes together. A blob of more
    than `alone_above` bytes (by default `max_bytes`) is a batch of its own. A blob that is not
    accepted is removed from `pending` too, but is in no batch. `begun` is the number of bytes that
    the batch has already.
    """
    batch: list[Blob] = []
    largest = max_bytes if alone_above is None else alone_above
    room = max_bytes - begun
    while pending and len(batch) < max_blobs:
        blob = pending[0]
        if (batch or begun) and blob.size > min(largest, room):
            break
        pending.popleft()
        if accept is not None and not accept(blob):
            continue
        batch.append(blob)
        room -= blob.size
        if blob.size > largest:
            break
    return batch


def split_into_batches(
    blobs: Iterable[Blob], *, max_blobs: int, max_bytes: int, alone_above: int
) -> Iterator[list[Blob]]:
    """Divide blobs into batches as `take_batch` does, the large ones first."""
    small: deque[Blob] = deque()
    for blob in blobs:
        if blob.size > alone_above:
            yield [blob]
        else:
            small.append(blob)
    while small:
        yield take_batch(small, max_blobs=max_blobs, max_bytes=max_bytes)


def take_request(
    pending: deque[Blob],
    limits: BlobGetLimits | None,
    most: int,
    accept: Callable[[Blob], bool],
    begun: int = 0,
) -> list[Blob]:
    """Remove the blobs for one request from `pending`, at most `most`, and return them.

    `begun` is the number of bytes that the request has already.
    """
    if limits is None:
        return take_batch(pending, max_blobs=1, max_bytes=0, accept=accept)
    return take_batch(
        pending,
        max_blobs=min(limits.blobs, most),
        max_bytes=limits.bytes,
        alone_above=limits.bytes // _LARGE_PART,
        accept=accept,
        begun=begun,
    )


def is_alone(size: int, limits: BlobGetLimits | None) -> bool:
    """Return whether a blob of this size gets a request of its own."""
    return limits is None or size > limits.bytes // _LARGE_PART


def divide(blobs: Iterable[Blob], limits: BlobGetLimits | None) -> Iterator[list[Blob]]:
    """Divide blobs into requests that the current limits of the server allow."""
    if limits is None:
        most, room, largest = _SINGLES, _SINGLES * SMALL_BYTES, SMALL_BYTES
    else:
        most, room, largest = limits.blobs, limits.bytes, limits.bytes // _LARGE_PART
    return split_into_batches(blobs, max_blobs=most, max_bytes=room, alone_above=largest)
