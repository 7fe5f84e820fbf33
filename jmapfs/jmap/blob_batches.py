"""Many small blobs in one request: Blob/get (RFC 9404 §4.2, and Cyrus's capability before it).

Over a network it is round trips that make mail slow, not bytes: fifty blobs in one answer cost
one. Whole blobs only, and never `offset` or `length`. A blob that comes in any way that is not
plainly whole is left to be downloaded by itself.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from jmapfs.jmap.account import AccountCalls
from jmapfs.jmap.api import DEFAULT_DEADLINE
from jmapfs.jmap.calls import Call
from jmapfs.jmap.decoding import Id
from jmapfs.jmap.mail import AccountBound

CAPABILITIES: Final = ("urn:ietf:params:jmap:blob", "https://cyrusimap.org/ns/jmap/blob")
"""What a session advertises Blob/get by; the first that it has is used."""

_DATA: Final = "data:asBase64"


@dataclass(frozen=True, slots=True)
class BlobBatch:
    """An answer of Blob/get: content by blob id, and the ids that it did not bring whole."""

    found: dict[str, bytes]
    left: tuple[str, ...]


class _BlobDocument(msgspec.Struct, rename="camel"):
    id: Id
    data: str | None = msgspec.field(name=_DATA, default=None)
    size: int | None = None
    is_truncated: bool | None = None
    is_encoding_problem: bool | None = None

    def content(self) -> bytes | None:
        """Return the content if it is whole."""
        if self.data is None or self.is_truncated or self.is_encoding_problem:
            return None
        try:
            content = base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError):
            return None
        return content if self.size in {None, len(content)} else None


class _BlobGetAnswer(AccountBound, kw_only=True, rename="camel"):
    items: list[_BlobDocument] = msgspec.field(name="list")


class BlobBatchCalls(AccountCalls):
    """Blob/get, where the session offers it."""

    @property
    def blob_batches(self) -> bool:
        """Whether blobs can be asked for together."""
        return self._blob_capability is not None

    @property
    def _blob_capability(self) -> str | None:
        offered = self.api.session.capabilities
        return next((name for name in CAPABILITIES if name in offered), None)

    async def get_blobs(
        self, blob_ids: Sequence[str], *, deadline: float = DEFAULT_DEADLINE
    ) -> BlobBatch:
        """Return the blobs in one request; the caller sees to it that they are not too much.

        Raises what Api.request raises; a MethodError or RequestError then says nothing of the
        blobs, which can still be downloaded one by one.
        """
        arguments = {
            "accountId": self.account_id,
            "ids": list(blob_ids),
            "properties": [_DATA, "size"],
        }
        using = frozenset(filter(None, [self._blob_capability]))
        [response] = await self.api.request(
            [Call("Blob/get", arguments, using=using)], deadline=deadline
        )
        wanted = set(blob_ids)
        found: dict[str, bytes] = {}
        for document in self._answer(response, _BlobGetAnswer).items:
            content = document.content()
            if content is not None and document.id in wanted:
                found[document.id] = content
        traffic = self.api.transport.traffic
        traffic.blobs += len(found)
        traffic.bytes += sum(map(len, found.values()))
        return BlobBatch(found, tuple(one for one in blob_ids if one not in found))
