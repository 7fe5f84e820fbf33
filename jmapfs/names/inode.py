"""Inode numbers, computed from what a thing is instead of counted.

    bit   61  60 ........ 29  28 ............ 0
    mail   0  receivedAt, s   hash of the blob id
    dir    1  hash of the path of the directory

An email's number grows with its time of receipt, so inode order (Borg, `cp -a`, large `grep -r`)
is name order but for emails of the same second. No counter is kept: a lost cache, or a second
machine, gives the same numbers. Everything stays below 2^62, and 0 and 1 are never given out.
"""

from __future__ import annotations

import hashlib
from typing import Final

ROOT_INODE: Final = 1
"""The root directory; the kernel fixes it (FUSE_ROOT_ID)."""

ABOUT_INODE: Final = 2
"""`.jmapfs.json`."""

HASH_BITS: Final = 29
_SECONDS_LIMIT: Final = 1 << 32  # the year 2106: later emails share the last second
_RESERVED: Final = 16
_DIRECTORY_BIT: Final = 1 << 61


def inode_slot(received_at: int) -> range:
    """Return the numbers that emails received at that second (since 1970, UTC) may have."""
    second = min(max(received_at, 0), _SECONDS_LIMIT - 1)
    first = second << HASH_BITS
    return range(max(first, _RESERVED), first + (1 << HASH_BITS))


def email_inode(blob_id: str, received_at: int, *, attempt: int = 0) -> int:
    """Return the inode of an email; `attempt` counts the numbers that were found taken."""
    slot = inode_slot(received_at)
    return slot[_hashed(f"{attempt}:{blob_id}", 64) % len(slot)]


def directory_inode(path: str, *, attempt: int = 0) -> int:
    """Return the inode of a directory, by its path of names from the root, without a leading `/`.

    It comes from the path, not from the mailbox id, and so outlives a change of mailbox ids.
    """
    return _DIRECTORY_BIT | _hashed(f"{attempt}:{path}", 60)


def _hashed(text: str, bits: int) -> int:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - bits)
