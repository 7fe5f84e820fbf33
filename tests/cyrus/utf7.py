"""Mailbox names as IMAP writes them: modified UTF-7 (RFC 3501 §5.1.3).

Python knows UTF-7 but not this form: `&` opens a shifted run instead of `+`, `,` stands for `/`
in its base64, printable ASCII always stands for itself and everything else, control characters
included, is shifted.
"""

from __future__ import annotations

import base64
import re

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
_SHIFTED = re.compile(rb"&([^-]*)-")


def encode(name: str) -> bytes:
    """Return `name` in modified UTF-7."""

    def shift(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "&" + base64.b64encode(units).decode().rstrip("=").replace("/", ",") + "-"

    return _UNPRINTABLE.sub(shift, name.replace("&", "&-")).encode("ascii")


def decode(name: bytes) -> str:
    """Return what `encode` was given."""
    parts = []
    end = 0
    for match in _SHIFTED.finditer(name):
        parts.append(name[end : match.start()].decode("ascii"))
        run = match[1].replace(b",", b"/")
        units = base64.b64decode(run + b"=" * (-len(run) % 4))
        parts.append(units.decode("utf-16-be", "surrogatepass") if run else "&")
        end = match.end()
    parts.append(name[end:].decode("ascii"))
    return "".join(parts)


def quote(name: str) -> str:
    """Return `name` as an argument of an IMAP command: encoded, and quoted for certain."""
    encoded = encode(name).decode("ascii")
    return '"' + encoded.replace("\\", "\\\\").replace('"', '\\"') + '"'
