"""The keys under which content is cached and downloaded.

An *epoch* is the time during which a server's ids keep their meaning. A reset or a restore of the
server begins a new one (compare UIDVALIDITY in IMAP). The epoch is empty if blob ids contain a
SHA-1: then they prove the content themselves. It is also empty in an index that an earlier version
has made, so that the cached content of that version can still be found.
"""

import secrets
from typing import Final

_SEPARATOR: Final = "\0"
_EPOCH_BYTES: Final = 4


def new_epoch() -> str:
    """Return a token for a new epoch."""
    return secrets.token_hex(_EPOCH_BYTES)


def content_key(epoch: str, blob_id: str) -> str:
    """Return the key of the content that a blob id stands for in an epoch."""
    return f"{epoch}{_SEPARATOR}{blob_id}" if epoch else blob_id


def split_content_key(key: str) -> tuple[str, str]:
    """Return the epoch and the blob id of a content key."""
    epoch, separator, blob_id = key.partition(_SEPARATOR)
    return (epoch, blob_id) if separator else ("", key)
