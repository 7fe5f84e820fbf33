"""What a snapshot says of itself: a line of `manifest.jsonl` for each mail, and `snapshot.json`.

Their members are those of JMAP (RFC 8621 §2 and §4), so that whoever puts the mail back one day
finds what `Email/import` asks for. README.md describes them; a change of what they mean is a new
`FORMAT`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec

from jmapfs.tree import MailboxPlace

FORMAT: Final = 1

MAIL: Final = "mail"
MANIFEST: Final = "manifest.jsonl"
CHECKSUMS: Final = "SHA256SUMS"
DESCRIPTION: Final = "snapshot.json"
TELLING: Final = (MANIFEST, DESCRIPTION, CHECKSUMS)
"""What a snapshot has besides mail."""

# The kernel takes none that is longer (PATH_MAX).
_LONGEST_PATH: Final = 4096
_NO_NAMES: Final = frozenset({"", ".", ".."})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Links = Literal["hard", "reflink", "copy"]
"""How files of the same content share it: one file with several names, blocks, or nothing."""


class SavedPlace(msgspec.Struct, frozen=True, rename="camel"):
    """A mailbox that a mail is in, and the mail's file there.

    `path` is that of the mailbox in the tree, `file` is relative to the snapshot.
    """

    id: str
    path: str
    role: str | None
    file: str


class SavedMail(msgspec.Struct, frozen=True, rename="camel"):
    """A mail: `size` in bytes, `sha256` of the content in hexadecimal, `received_at` a UTCDate."""

    id: str
    blob_id: str
    thread_id: str
    received_at: str
    size: int
    sha256: str
    keywords: tuple[str, ...]
    mailboxes: tuple[SavedPlace, ...]


class Origin(msgspec.Struct, frozen=True, rename="camel"):
    """Where the mail of a snapshot is from; `directory` is empty for the whole account."""

    server: str
    account_id: str
    account_name: str
    username: str
    directory: str = ""


class Description(msgspec.Struct, frozen=True, rename="camel"):
    """One snapshot.

    `date` is its name; `email_state` the state of the account that it is (RFC 8620 §1.6.3).
    `files` counts names, `bytes` the content, each blob once. `new`, `gone` and `added_bytes` are
    in comparison to the snapshot `previous`.
    """

    format: int
    jmapfs: str
    date: str
    origin: Origin
    email_state: str
    mails: int
    files: int
    bytes: int
    previous: str | None
    new: int
    gone: int
    added_bytes: int
    links: Links
    mailboxes: tuple[MailboxPlace, ...]


def utc_date(seconds: int) -> str:
    """Return seconds since 1970 as a UTCDate (RFC 8620 §1.4)."""
    # Not fromtimestamp: it knows no years before 1970 everywhere.
    return (_EPOCH + timedelta(seconds=seconds)).isoformat(timespec="seconds")[:-6] + "Z"


def is_mail_file(path: str) -> bool:
    """Tell whether a path is one that a file of mail has: in the snapshot, whatever it says."""
    if len(path) > _LONGEST_PATH or "\0" in path:
        return False
    first, *others = path.split("/")
    return first == MAIL and bool(others) and not _NO_NAMES & set(others)
