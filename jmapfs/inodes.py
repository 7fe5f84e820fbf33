"""Inode numbers, computed from what a thing is instead of counted.

    bit   61  60 ...... 29  28 .. 24  23 ......... 0
    mail   0  receivedAt,s  account   hash of the blob id
    bit   61  60 .. 56  55 ......................... 0
    dir    1  account   hash of the path of the directory

An email's number grows with its time of receipt, so inode order (Borg, `cp -a`, large `grep -r`)
is name order but for emails of the same second. No counter is kept: a lost cache, or a second
machine, gives the same numbers. Everything stays below 2^62, and 0 and 1 are never given out.

The account is 0 where one account is mounted. Where several are, each has a number of its own
(`account_numbers`), put into the inodes by `to_mount`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

ROOT_INODE: Final = 1
"""The root directory; the kernel fixes it (FUSE_ROOT_ID)."""

STATUS_FILE_INODE: Final = 2
"""`.jmapfs.json`."""

ACCOUNT_BITS: Final = 5
HASH_BITS: Final = 24
_MAIL_SHIFT: Final = HASH_BITS + ACCOUNT_BITS
_PATH_BITS: Final = 56
_ACCOUNT_MASK: Final = (1 << ACCOUNT_BITS) - 1
_SECONDS_LIMIT: Final = 1 << 32  # the year 2106: later emails share the last second
_RESERVED: Final = 16
_DIRECTORY_BIT: Final = 1 << 61


def inode_range(received_at: int) -> range:
    """Return the numbers that emails received at that second (since 1970, UTC) may have."""
    second = min(max(received_at, 0), _SECONDS_LIMIT - 1)
    first = second << _MAIL_SHIFT
    return range(max(first, _RESERVED), first + (1 << HASH_BITS))


def email_inode(blob_id: str, received_at: int, *, attempt: int = 0) -> int:
    """Return the inode of an email; `attempt` counts the numbers that were found taken."""
    slot = inode_range(received_at)
    return slot[_hashed(f"{attempt}:{blob_id}", 64) % len(slot)]


def directory_inode(path: str, *, attempt: int = 0) -> int:
    """Return the inode of a directory, by its path of names from the root, without a leading `/`.

    It comes from the path, not from the mailbox id, and so outlives a change of mailbox ids.
    """
    number = _hashed(f"{attempt}:{path}", _PATH_BITS)
    return _DIRECTORY_BIT | (number if number >= _RESERVED else number + _RESERVED)


def account_numbers(account_ids: Iterable[str]) -> dict[str, int]:
    """Give each account a number from 1 on that seldom changes when accounts come and go.

    Raises:
        ValueError: there are more accounts than numbers.
    """
    slots: dict[str, int] = {}
    taken: set[int] = set()
    for account_id in sorted(account_ids):
        if len(taken) == _ACCOUNT_MASK:
            raise ValueError(f"more than {_ACCOUNT_MASK} accounts")
        attempt = 0
        while (slot := 1 + _hashed(f"{attempt}:{account_id}", 64) % _ACCOUNT_MASK) in taken:
            attempt += 1
        taken.add(slot)
        slots[account_id] = slot
    return slots


def to_mount(slot: int, inode: int) -> int:
    """Return the number that an account's inode has among those of several accounts.

    The account's own root and `.jmapfs.json` become numbers in the range of directories.
    """
    if inode < _RESERVED:
        return _DIRECTORY_BIT | slot << _PATH_BITS | inode
    return inode | slot << (_PATH_BITS if inode & _DIRECTORY_BIT else HASH_BITS)


def to_account(inode: int) -> tuple[int, int]:
    """Return the account's number and its own inode: the reverse of `to_mount`."""
    if inode & _DIRECTORY_BIT:
        slot = inode >> _PATH_BITS & _ACCOUNT_MASK
        own = inode & ~(_ACCOUNT_MASK << _PATH_BITS)
        number = own & ((1 << _PATH_BITS) - 1)
        return slot, number if number < _RESERVED else own
    return inode >> HASH_BITS & _ACCOUNT_MASK, inode & ~(_ACCOUNT_MASK << HASH_BITS)


def _hashed(text: str, bits: int) -> int:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - bits)
