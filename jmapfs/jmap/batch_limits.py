"""How much one Blob/get may ask for: what the session says, caps of our own, what was refused.

No server says how many bytes its answer to Blob/get may have, so of what it refuses as too large
the fuller measure is blamed, and halved. None of it has to do with how many emails it lets us
get at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from jmapfs.jmap.session import Session

BLOB = "urn:ietf:params:jmap:blob"
"""The capability of RFC 9404 §3.1."""

CYRUS_BLOB = "https://cyrusimap.org/ns/jmap/blob"
"""The name of Cyrus for it, before there was the RFC."""

BLOB_CAPABILITIES = frozenset({BLOB, CYRUS_BLOB})

# Of Cyrus on loopback, with two or three calls in flight, 50 blobs a call bring 5,000 a second,
# 200 bring 7,000 for half the work here, and 400 no more. What a download beside them waits is the
# same with each; but on a slow line it waits for the bytes, so those are few.
MOST_BLOBS = 200
MOST_BYTES = 2**20

# What stands in a request beside the ids, and what an id takes: 255 characters, two quotes and a
# comma. Longer ones, in UTF-8, meet the limit where the request is made.
_REQUEST = 1024
_ID = 258


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How many blobs one call may ask for, at least 2, and how many bytes they may have in all."""

    blobs: int
    bytes: int


class BatchBounds:
    """What a server's refusals taught, for as long as its Api lives, whatever its session says."""

    def __init__(self) -> None:
        self._blobs = MOST_BLOBS
        self._bytes = MOST_BYTES
        self._declined: set[str] = set()

    def limits(self, session: Session, account_id: str) -> BatchLimits | None:
        """Return the limits for an account now; None where there are no batches to be had."""
        if account_id in self._declined or BLOB_CAPABILITIES.isdisjoint(session.capabilities):
            return None
        allowed = session.limits
        room = (allowed.max_size_request - _REQUEST) // _ID
        blobs = min(self._blobs, allowed.max_objects_in_get, room)
        # A batch of one is a download with a detour.
        return BatchLimits(blobs, self._bytes) if blobs >= 2 and self._bytes else None

    def decline(self, account_id: str) -> None:
        """Remember that there is no Blob/get for this account."""
        self._declined.add(account_id)

    def refuse(self, blobs: int, size: int) -> None:
        """Remember that so many blobs, of `size` bytes in all, are too much for one answer."""
        if blobs > 1 and blobs * self._bytes >= size * self._blobs:
            self.refuse_request(blobs)
        else:
            self._bytes = min(self._bytes, size // 2)

    def refuse_request(self, blobs: int) -> None:
        """Remember that the ids of so many blobs are too much for one request."""
        self._blobs = min(self._blobs, blobs // 2)
