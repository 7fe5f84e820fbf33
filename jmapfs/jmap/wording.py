"""What a server says, made fit to be shown to a person.

Whatever comes from a server may be long, HTML, or meant for the terminal rather than its reader.
"""

from __future__ import annotations

import html
import re

_UNSEEN = re.compile(r"<(script|style|head|title)\b.*?(</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")
_HTML = re.compile(r"<\s*(!doctype|html|head|body|h\d|p|div|br|title)\b", re.IGNORECASE)

# Enough for any error page; the expressions above need not run over megabytes.
_LONGEST_TEXT = 16_384


def printable(text: str, limit: int) -> str:
    """Return `text` on one line of at most `limit` characters, without any control character."""
    seen = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(seen.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def plain_text(body: bytes, limit: int) -> str:
    """Return what a person would read in `body`, HTML tags removed, on one line."""
    text = body[:_LONGEST_TEXT].decode("utf-8", "replace")
    if _HTML.search(text):
        text = html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text)))
    return printable(text, limit)
