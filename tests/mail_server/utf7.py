"""The encoding of mailbox names in IMAP: modified UTF-7 (RFC 3501 §5.1.3).

Python supports UTF-7, but not this variant: `&` starts a run instead of `+`, `,` replaces `/` in
its base64, printable ASCII represents itself, and everything else is encoded.
"""

from __future__ import annotations

import base64
import re

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


def encode(name: str) -> bytes:
    """Return `name` in modified UTF-7."""

    def shift(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "&" + base64.b64encode(units).decode().rstrip("=").replace("/", ",") + "-"

    return _UNPRINTABLE.sub(shift, name.replace("&", "&-")).encode("ascii")


def quote(name: str) -> str:
    """Return `name` as a quoted argument of an IMAP command."""
    encoded = encode(name).decode("ascii")
    return '"' + encoded.replace("\\", "\\\\").replace('"', '\\"') + '"'
