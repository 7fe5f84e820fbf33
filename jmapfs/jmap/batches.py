"""Downloading many blobs in one request (Blob/get, RFC 9404 §4.2), where the server can.

A batch is a shortcut and no more: a blob that does not come whole is left out, and is downloaded
by itself, which says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import msgspec
import trio

from jmapfs.errors import JmapfsError, MethodError, ProtocolError, RequestError
from jmapfs.jmap.api import MethodCall, MethodResponse
from jmapfs.jmap.batch_limits import BLOB_CAPABILITIES, BatchLimits
from jmapfs.jmap.methods import AccountMethods, is_too_large
from jmapfs.jmap.types import AccountBound, Id, UnsignedInt, decode

# Cyrus 3.6 gives the id unasked, and takes it for a mistake to ask for it.
_PROPERTIES = ("data:asBase64", "size")
# How far an answer may be from the sizes that were promised, before it is given up for memory's
# sake; and what a blob takes in it beside its content.
_MARGIN = 16 * 2**20
_BESIDE_CONTENT = 1024
# What will be answered to the next call too. Nothing in the arguments is new but the ids.
_LASTING = frozenset(
    {"unknownMethod", "invalidArguments", "forbidden", "accountNotSupportedByMethod"}
)
_UNKNOWN_CAPABILITY = "urn:ietf:params:jmap:error:unknownCapability"


class BlobDocument(msgspec.Struct, frozen=True, rename="camel"):
    """A blob as it comes. msgspec decodes base64 where bytes are meant."""

    id: Id
    data: bytes | None = msgspec.field(name="data:asBase64", default=None)
    size: UnsignedInt | None = None
    is_truncated: bool | None = None

    @property
    def whole(self) -> bool:
        """Whether all of the blob is here, by what the server says of it."""
        return self.data is not None and len(self.data) == self.size and not self.is_truncated


class BlobGetAnswer(AccountBound, kw_only=True, rename="camel"):
    """The response to Blob/get."""

    items: list[BlobDocument] = msgspec.field(name="list")


class LooseBlobGetAnswer(AccountBound, kw_only=True, rename="camel"):
    """The same, where not all blobs in it are as they should be."""

    items: list[msgspec.Raw] = msgspec.field(name="list")


class BatchMethods(AccountMethods):
    """Blob/get (RFC 9404 §4.2). A batch counts in the budget of the transport as one request."""

    @property
    def batch_limits(self) -> BatchLimits | None:
        """How much to ask `download_batch` for now; None where the server has no Blob/get.

        It can shrink, or become None, with each batch.
        """
        return self.api.batches.limits(self.api.session, self.account_id)

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: float
    ) -> dict[str, bytes]:
        """Return the content of those of `blobs` that come whole, by blob id.

        `blobs` are ids and the sizes they should have in bytes. One request within
        `batch_limits`; beyond, and where the server finds it too large, several in turn.
        `deadline` is in seconds, for everything.

        Left out is what the server does not have, gives in part or in another length than it says
        in the same answer, what cannot be read, and what is larger than the limits: download
        these by themselves. Content of another length than in `blobs` is returned as it is, for
        the caller to judge. Where the server turns out to have no Blob/get, everything is left
        out, and `batch_limits` is None from then on.

        Raises what Api.request raises: MethodError, RequestError, UnreachableError, ProtocolError
        for an answer that is none, or is larger by more than 16 MiB than it should be.
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
        traffic = self.api.transport.traffic
        traffic.blobs += len(found)
        traffic.bytes += sum(map(len, found.values()))
        return found

    async def _get_blobs(self, batch: dict[str, int], deadline: float) -> dict[str, bytes]:
        # Neither offset nor length: Cyrus calls what is read with one of them truncated.
        call = MethodCall(
            "Blob/get",
            {"accountId": self.account_id, "ids": list(batch), "properties": _PROPERTIES},
            using=BLOB_CAPABILITIES,
        )
        largest = sum(size * 4 // 3 + _BESIDE_CONTENT for size in batch.values()) + _MARGIN
        [response] = await self.api.request([call], deadline=deadline, largest_answer=largest)
        return _whole(batch, self._items(response))

    def _items(self, response: MethodResponse) -> list[BlobDocument]:
        try:
            # In the event loop: 1 ms for each MiB, in which msgspec holds the interpreter's lock,
            # so that a thread would hold up the loop for as long.
            return self._answer(response, BlobGetAnswer).items
        except ProtocolError:
            # One blob that cannot be read must not cost the others.
            return list(_readable(self._answer(response, LooseBlobGetAnswer).items))

    def _learn(self, error: MethodError | RequestError, batch: dict[str, int]) -> None:
        """Draw the lesson of a refusal; raise the error where it holds none."""
        bounds = self.api.batches
        if _is_lasting(error):
            bounds.decline(self.account_id)
        elif not is_too_large(error):
            raise error
        elif isinstance(error, MethodError):
            bounds.refuse(len(batch), sum(batch.values()))
        else:
            bounds.refuse_request(len(batch))


def _is_lasting(error: JmapfsError) -> bool:
    if isinstance(error, MethodError):
        return error.kind in _LASTING
    return isinstance(error, RequestError) and error.kind == _UNKNOWN_CAPABILITY


def _first(pending: dict[str, int], limits: BatchLimits) -> dict[str, int]:
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


def _readable(items: Iterable[msgspec.Raw]) -> Iterator[BlobDocument]:
    for item in items:
        with suppress(ProtocolError):
            yield decode(item, BlobDocument, "a blob in the server's answer to Blob/get")


def _whole(asked: Iterable[str], items: Iterable[BlobDocument]) -> dict[str, bytes]:
    """Return what was asked for and is whole; what is there twice must be the same."""
    wanted = set(asked)
    found: dict[str, bytes] = {}
    for item in items:
        if item.id not in wanted:
            continue
        if item.data is None or not item.whole or found.setdefault(item.id, item.data) != item.data:
            wanted.discard(item.id)
            found.pop(item.id, None)
    return found
