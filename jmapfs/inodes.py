"""Inode numbers. Inodes are computed from the email or directory, not assigned by a counter.

    bit   61  60 ...... 29  28 .. 24  23 ......... 0
    mail   0  receivedAt,s  account   hash of the blob id
    bit   61  60 .. 56  55 ......................... 0
    dir    1  account   hash of the path of the directory

The later an email was received, the larger is its inode. So programs that read files in the order
of inodes (Borg, `cp -a`, large `grep -r`) read them in the order of names, except for emails of the
same second. Without a counter, the inodes are the same after the cache is lost and on another
machine. All of them are below 2^62; 0 and 1 are never used.

In a mount of one account, the account has the number 0. In a mount of several accounts, each
account has its own number from 1 on (`account_numbers`), and `to_mount` puts this number into the
inodes.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

ROOT_INODE: Final = 1
"""The root directory, as the kernel requires (FUSE_ROOT_ID)."""

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
    """Return the inodes that emails received at that second (since 1970, UTC) may have."""
    second = min(max(received_at, 0), _SECONDS_LIMIT - 1)
    first = second << _MAIL_SHIFT
    return range(max(first, _RESERVED), first + (1 << HASH_BITS))


def email_inode(blob_id: str, received_at: int, *, attempt: int = 0) -> int:
    """Return a candidate for the inode of an email.

    `attempt` is 0 for the first candidate, 1 for the second, and so on.
    """
    inodes = inode_range(received_at)
    return inodes[_hashed(f"{attempt}:{blob_id}", 64) % len(inodes)]


def directory_inode(path: str, *, attempt: int = 0) -> int:
    """Return the inode of a directory, by its path of names from the root, without a leading `/`.

    The inode is computed from the path, so it stays the same when the mailbox id changes.
    """
    number = _hashed(f"{attempt}:{path}", _PATH_BITS)
    return _DIRECTORY_BIT | (number if number >= _RESERVED else number + _RESERVED)


def account_numbers(account_ids: Iterable[str]) -> dict[str, int]:
    """Return a number from 1 for each account; it seldom changes if other accounts come or go.

    Raises ValueError if there are more accounts than numbers.
    """
    numbers: dict[str, int] = {}
    taken: set[int] = set()
    for account_id in sorted(account_ids):
        if len(taken) == _ACCOUNT_MASK:
            raise ValueError(f"more than {_ACCOUNT_MASK} accounts")
        attempt = 0
        while (number := 1 + _hashed(f"{attempt}:{account_id}", 64) % _ACCOUNT_MASK) in taken:
            attempt += 1
        taken.add(number)
        numbers[account_id] = number
    return numbers


def to_mount(account: int, inode: int) -> int:
    """Return the inode that an account's inode has in a mount of several accounts.

    The account's root and `.jmapfs.json` get inodes in the range of directories.
    """
    if inode < _RESERVED:
        return _DIRECTORY_BIT | account << _PATH_BITS | inode
    return inode | account << (_PATH_BITS if inode & _DIRECTORY_BIT else HASH_BITS)


def to_account(inode: int) -> tuple[int, int]:
    """Return the number of an account and its own inode: the reverse of `to_mount`."""
    if inode & _DIRECTORY_BIT:
        account = inode >> _PATH_BITS & _ACCOUNT_MASK
        own = inode & ~(_ACCOUNT_MASK << _PATH_BITS)
        path_hash = own & ((1 << _PATH_BITS) - 1)
        return account, path_hash if path_hash < _RESERVED else own
    return inode >> HASH_BITS & _ACCOUNT_MASK, inode & ~(_ACCOUNT_MASK << HASH_BITS)


def _hashed(text: str, bits: int) -> int:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - bits)
