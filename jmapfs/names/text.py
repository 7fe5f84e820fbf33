"""Text from strangers, made safe to be part of a file name.

Letters, digits, marks and symbols of every script stay. Whatever a shell, a terminal or a path
gives a meaning to becomes a hyphen or goes: separators, quotes, control and bidi characters.

The same text must give the same name on every machine, and Python releases differ in the Unicode
they know: a character that one calls unassigned is a letter to the next. So categories come from
Unicode 3.2, which Python ships frozen for IDNA, and what 3.2 does not know is kept as it is.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
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
