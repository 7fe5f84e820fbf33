"""What the file of an email is called.

    20240301-101500_Alice-Ng_Quarterly-report_k3f5a2qx.eml
    time (UTC)      sender   subject          key of the blob id

The time comes first, so that name order is the order of receipt; the key comes from the blob,
which outlives the Email id (RFC 8621 §3: merging threads may change ids). The underscore
separates the parts and appears in none of them.

Text from strangers, made safe to be part of a file name.

Letters, digits, marks and symbols of every script stay. Whatever a shell, a terminal or a path
gives a meaning to becomes a hyphen or goes: separators, quotes, control and bidi characters.

The same text must give the same name on every machine, and Python releases differ in the Unicode
they know: a character that one calls unassigned is a letter to the next. So categories come from
Unicode 3.2, which Python ships frozen for IDNA, and what 3.2 does not know is kept as it is.

What the directory of a mailbox is called.

A mailbox name is anything at all: Cyrus takes `..` and `.`, others `a/b`. It becomes a safe name,
and siblings that would come out alike (also where case or Unicode form does not count) get a key
at the end. RFC 8621 §2 has no two siblings of the same name, so the key comes from the full name
and survives a change of mailbox ids; only where a server breaks that rule the id decides.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

KEY_LENGTH: Final = 8
"""Characters in a key: 40 bits, in base32."""

_ASCII_KEPT: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._+@,"
)

# Format characters younger than Unicode 3.2 that reorder what a terminal shows (UAX #9).
_YOUNG_BIDI_CONTROLS: Final = frozenset({0x061C, 0x2066, 0x2067, 0x2068, 0x2069})

# A table of everything seen would grow with hostile mail to the whole of Unicode.
_TABLE_LIMIT: Final = 8192


class _SafeCharacters(dict[int, str]):
    """A `str.translate` table that is filled in as characters turn up."""

    def __missing__(self, codepoint: int) -> str:
        replacement = _safe_character(codepoint)
        if len(self) < _TABLE_LIMIT:
            self[codepoint] = replacement
        return replacement


def _safe_character(codepoint: int) -> str:
    character = chr(codepoint)
    if codepoint < 0x80:
        if codepoint in _ASCII_KEPT:
            return character
        return "" if codepoint < 0x20 and character not in "\t\n\r" else "-"
    if codepoint in _YOUNG_BIDI_CONTROLS:
        return ""
    category = unicodedata.ucd_3_2_0.category(character)
    if category == "Cn":
        # Noncharacters are unassigned for ever; all others may yet become somebody's letters.
        return "" if codepoint & 0xFFFE == 0xFFFE or 0xFDD0 <= codepoint <= 0xFDEF else character
    if category[0] in "LMNS":
        return character
    return "-" if category[0] in "PZ" else ""


_TABLE: Final = _SafeCharacters()
_HYPHENS: Final = re.compile(r"-{2,}")


def safe_text(text: str, *, limit: int) -> str:
    """Return `text` as a part of a file name of at most `limit` bytes of UTF-8; maybe empty.

    The result is in NFC, has no leading or trailing hyphen or dot, and is cut between characters.
    """
    # Normalised before as well: U+037E becomes a semicolon by it, U+1FEF a backquote.
    mapped = unicodedata.normalize("NFC", text).translate(_TABLE)
    tidy = _HYPHENS.sub("-", unicodedata.normalize("NFC", mapped)).strip("-.")
    if len(tidy) * 4 <= limit:
        return tidy
    return tidy.encode()[:limit].decode(errors="ignore").rstrip("-.")


def key(identity: str, *, length: int = KEY_LENGTH) -> str:
    """Return `length` characters (a-z, 2-7) that stand for `identity`.

    Lower case only, so that keys stay apart on file systems that fold case.
    """
    digest = hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=40).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:length]


# With the longest key the name still fits into 255 bytes.
_LIMIT: Final = 180
_KEY_LENGTHS: Final = (KEY_LENGTH, 2 * KEY_LENGTH, 8 * KEY_LENGTH)


def sibling_names(mailboxes: Mapping[str, str]) -> dict[str, str]:
    """Return the directory name of each of the mailboxes that share a parent.

    `mailboxes` maps mailbox ids to names as the server gives them. The result maps the same ids
    to names that stay apart under case folding and Unicode normalisation, and that no email has.
    """
    alike = Counter(mailboxes.values())
    identity = {
        mailbox_id: name if alike[name] == 1 else f"{name}\0{mailbox_id}"
        for mailbox_id, name in mailboxes.items()
    }
    plain = {mailbox_id: _plain_name(name) for mailbox_id, name in mailboxes.items()}
    names = {
        mailbox_id: name or f"unnamed_{key(identity[mailbox_id])}"
        for mailbox_id, name in plain.items()
    }
    for length in _KEY_LENGTHS:
        folded = Counter(map(_folded, names.values()))
        twins = [mailbox_id for mailbox_id, name in names.items() if folded[_folded(name)] > 1]
        if not twins:
            break
        for mailbox_id in twins:
            suffix = key(identity[mailbox_id], length=length)
            names[mailbox_id] = f"{plain[mailbox_id] or 'unnamed'}_{suffix}"
    return names


def _plain_name(name: str) -> str:
    safe = safe_text(name, limit=_LIMIT)
    if safe.casefold().endswith(SUFFIX):
        # Directories and emails stand side by side: the ending belongs to the emails.
        return f"{safe[: -len(SUFFIX)]}-{SUFFIX[1:]}"
    return safe


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold())


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
