"""What the file of an email is called.

    20240301-101500_Alice-Ng_Quarterly-report_k3f5a2qx.eml
    time (UTC)      sender   subject          key of the blob id

The time comes first, so that name order is the order of receipt; the key comes from the blob,
which outlives the Email id (RFC 8621 §3: merging threads may change ids). The underscore
separates the parts and appears in none of them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from jmapfs.names.text import key, safe_text

SUFFIX: Final = ".eml"

# Far below the 255 bytes that Linux allows: the encrypting file systems that people keep backups
# on allow 143 characters, and a name is also a memory entry in the kernel.
_SENDER_LIMIT: Final = 40
_SUBJECT_LIMIT: Final = 64

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def email_stem(
    *, received_at: int, sender_name: str | None, sender: str | None, subject: str | None, blob: str
) -> str:
    """Return the file name of an email, without ending or number.

    `received_at` is in seconds since 1970 (UTC, years 1 to 9999), `sender_name` and `sender` the
    display name and address of the first `From`, `blob` the blob id.
    """
    when = _EPOCH + timedelta(seconds=received_at)
    who = _part(sender_name, _SENDER_LIMIT) or _part(sender, _SENDER_LIMIT) or "unknown"
    what = _part(subject, _SUBJECT_LIMIT) or "no-subject"
    return (
        f"{when.year:04}{when.month:02}{when.day:02}-"
        f"{when.hour:02}{when.minute:02}{when.second:02}_{who}_{what}_{key(blob)}"
    )


def numbered_name(stem: str, number: int) -> str:
    """Return the name of the `number`-th email (from 1) that has this stem in one mailbox.

    Only copies of one message share a stem, so it does not matter which is the first.
    """
    return f"{stem}{SUFFIX}" if number == 1 else f"{stem}_{number}{SUFFIX}"


def _part(text: str | None, limit: int) -> str:
    return safe_text(text.replace("_", "-"), limit=limit) if text else ""
