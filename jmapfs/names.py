"""The names of files and directories.

The file of an email:

    20240301-101500_Alice-Ng_Quarterly-report_k3f5a2qx.eml
    time (UTC)      sender   subject          key of the blob id

The time comes first, so that the order of names is the order of receipt. The key comes from the
blob id, which stays the same when the Email id changes (RFC 8621 §3: merging threads may change
ids). Underscores separate the parts and do not occur in them.

Safe text keeps the letters, digits, marks and symbols of every script. Everything that has a
meaning for a shell, a terminal or a path becomes a hyphen or is removed: separators, quotes,
control and bidi characters. The same text must give the same name on every machine, but Python
releases have different versions of Unicode: a character that is unassigned in one is a letter in
the next. So categories come from Unicode 3.2, which every Python has for IDNA, and characters that
are unassigned in 3.2 are kept.

The directory of a mailbox: the name of a mailbox can be any text (Cyrus accepts `..` and `.`,
others `a/b`). The name becomes safe text. If siblings would have the same name, ignoring case and
Unicode form, each gets a key at the end. RFC 8621 §2 forbids siblings with the same name. So the
key is computed from the full name, and stays the same when mailbox ids change. If a server breaks
this rule, the key is computed from the name and the id.
"""

import base64
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

SUFFIX: Final = ".eml"

KEY_LENGTH: Final = 8
"""Characters in a key: 40 bits, in base32."""

_ASCII_KEPT: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._+@,"
)

# Format characters that are newer than Unicode 3.2 and reorder text on a terminal (UAX #9).
_NEW_BIDI_CONTROLS: Final = frozenset({0x061C, 0x2066, 0x2067, 0x2068, 0x2069})

# The table has a limit, because hostile mail could make it as large as Unicode.
_TABLE_LIMIT: Final = 8192


class _SafeCharacters(dict[int, str]):
    """A table for `str.translate` that computes its entries when they are first used."""

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
    if codepoint in _NEW_BIDI_CONTROLS:
        return ""
    category = unicodedata.ucd_3_2_0.category(character)
    if category == "Cn":
        # Noncharacters stay unassigned. Every other character may be a letter in a newer Unicode.
        return "" if codepoint & 0xFFFE == 0xFFFE or 0xFDD0 <= codepoint <= 0xFDEF else character
    if category[0] in "LMNS":
        return character
    return "-" if category[0] in "PZ" else ""


# A name has far fewer characters, but most of a text may be removed or replaced.
_MOST_CHARACTERS: Final = 4096
_SHORT_CHARACTERS: Final = 256
_MOST_COMBINING: Final = 30  # in a row, as in the Stream-Safe Text Format (UAX #15)

_TABLE: Final = _SafeCharacters()
_HYPHENS: Final = re.compile(r"-{2,}")


def _bounded(text: str) -> str:
    """Return a text that is normalized quickly: combining characters take quadratic time."""
    if len(text) <= _SHORT_CHARACTERS:
        return text
    kept: list[str] = []
    row = 0
    for character in text[:_MOST_CHARACTERS]:
        row = row + 1 if unicodedata.combining(character) else 0
        if row <= _MOST_COMBINING:
            kept.append(character)
    return "".join(kept)


def safe_text(text: str, *, limit: int) -> str:
    """Return `text` as a part of a file name of at most `limit` bytes of UTF-8; maybe empty.

    The result is in NFC, has no leading or trailing hyphen or dot, and is cut between characters.
    """
    # Normalize before the translation too: NFC turns U+037E into `;` and U+1FEF into a backquote.
    mapped = unicodedata.normalize("NFC", _bounded(text)).translate(_TABLE)
    tidy = _HYPHENS.sub("-", unicodedata.normalize("NFC", mapped)).strip("-.")
    if len(tidy) * 4 <= limit:
        return tidy
    return tidy.encode()[:limit].decode(errors="ignore").rstrip("-.")


def key(identity: str, *, length: int = KEY_LENGTH) -> str:
    """Return `length` characters (a-z, 2-7) of a hash of `identity`.

    Lower case only, so that keys stay different on file systems that ignore case.
    """
    digest = hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=40).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:length]


MAILBOX_NAME_BYTES: Final = 180
"""The longest name of a directory without a key. It fits into 255 bytes with the longest key."""

_KEY_LENGTHS: Final = (KEY_LENGTH, 2 * KEY_LENGTH, 8 * KEY_LENGTH)


def sibling_names(mailboxes: Mapping[str, str]) -> dict[str, str]:
    """Return the directory names of mailboxes that have the same parent.

    `mailboxes` maps mailbox ids to the server's names. The result maps these ids to names that no
    email can have. The names differ even after case folding and Unicode normalization.
    """
    occurrences = Counter(mailboxes.values())
    identity = {
        mailbox_id: name if occurrences[name] == 1 else f"{name}\0{mailbox_id}"
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
    safe = safe_text(name, limit=MAILBOX_NAME_BYTES)
    if safe.casefold().endswith(SUFFIX):
        # Directories and emails can be in the same directory, and only emails have this suffix.
        return f"{safe[: -len(SUFFIX)]}-{SUFFIX[1:]}"
    return safe


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold())


# Far below the 255 bytes of Linux: encrypting file systems, on which backups are often kept, allow
# 143 characters. The kernel also keeps names in memory.
_SENDER_LIMIT: Final = 40
_SUBJECT_LIMIT: Final = 64

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def email_stem(
    *, received_at: int, sender_name: str | None, sender: str | None, subject: str | None, blob: str
) -> str:
    """Return the file name of an email, without number and suffix.

    `received_at` is in seconds since 1970 (UTC, years 1 to 9999), `sender_name` and `sender` the
    display name and address of the first `From`, `blob` the blob id.
    """
    time = _EPOCH + timedelta(seconds=received_at)
    name = _part(sender_name, _SENDER_LIMIT) or _part(sender, _SENDER_LIMIT) or "unknown"
    title = _part(subject, _SUBJECT_LIMIT) or "no-subject"
    return (
        f"{time.year:04}{time.month:02}{time.day:02}-"
        f"{time.hour:02}{time.minute:02}{time.second:02}_{name}_{title}_{key(blob)}"
    )


def numbered_name(stem: str, number: int) -> str:
    """Return the name of the `number`-th email (from 1) that has this stem in one mailbox.

    Only copies of one message have the same stem, so their order does not matter.
    """
    return f"{stem}{SUFFIX}" if number == 1 else f"{stem}_{number}{SUFFIX}"


def name_number(stem: str, name: str) -> int:
    """Return the number of a name with this stem: the reverse of `numbered_name`."""
    number = name[len(stem) + 1 : -len(SUFFIX)]
    return int(number) if number else 1


def _part(text: str | None, limit: int) -> str:
    return safe_text(text.replace("_", "-"), limit=limit) if text else ""
