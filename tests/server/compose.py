"""Builds messages byte for byte, in any charset (RFC 5322, RFC 2047)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime

CRLF = "\r\n"
_WORD_CHARACTERS = 12  # fits an encoded word of 75 characters in every charset used here


@dataclass(frozen=True, slots=True)
class Person:
    """A correspondent."""

    name: str
    email: str

    def header(self, charset: str = "utf-8") -> str:
        return f"{encoded(self.name, charset)} <{self.email}>"


@dataclass(frozen=True, slots=True)
class Attachment:
    """An attached file."""

    name: str
    media_type: str
    content: bytes


def encoded(text: str, charset: str = "utf-8") -> str:
    """Return header text: unchanged if it is printable ASCII, else in encoded words."""
    if text.isascii() and text.isprintable():
        return text
    words = []
    for start in range(0, len(text), _WORD_CHARACTERS):
        part = text[start : start + _WORD_CHARACTERS].encode(charset)
        words.append(f"=?{charset}?B?{base64.b64encode(part).decode()}?=")
    return (CRLF + " ").join(words)


def noise(seed: str, size: int) -> bytes:
    """Return pseudo-random bytes, the same in every run."""
    return hashlib.shake_128(seed.encode()).digest(size)


def compose(
    sender: Person,
    to: Iterable[Person],
    subject: str,
    sent: datetime,
    body: str,
    *,
    message_id: str,
    references: Iterable[str] = (),
    attachments: Iterable[Attachment] = (),
    charset: str = "utf-8",
    extra: Iterable[str] = (),
) -> bytes:
    """Return a message with CRLF line ends."""
    earlier = [f"<{each}>" for each in references]
    header = [
        f"From: {sender.header(charset)}",
        f"To: {', '.join(each.header(charset) for each in to)}",
        f"Subject: {encoded(subject, charset)}",
        f"Date: {format_datetime(sent)}",
        f"Message-ID: <{message_id}>",
        *([f"In-Reply-To: {earlier[-1]}", f"References: {' '.join(earlier)}"] if earlier else []),
        *extra,
        "MIME-Version: 1.0",
    ]
    text_type = f"Content-Type: text/plain; charset={charset}"
    text = body.replace("\n", CRLF).encode(charset)
    parts = list(attachments)
    if not parts:
        top = [*header, text_type, "Content-Transfer-Encoding: 8bit", "", ""]
        return CRLF.join(top).encode() + text
    boundary = "=_" + hashlib.blake2s(message_id.encode(), digest_size=8).hexdigest()
    top = [*header, f'Content-Type: multipart/mixed; boundary="{boundary}"', "", ""]
    first = [f"--{boundary}", text_type, "Content-Transfer-Encoding: 8bit", "", ""]
    pieces = [CRLF.join(top).encode(), CRLF.join(first).encode(), text]
    for each in parts:
        lines = [
            "",
            f"--{boundary}",
            f'Content-Type: {each.media_type}; name="{each.name}"',
            f'Content-Disposition: attachment; filename="{each.name}"',
            "Content-Transfer-Encoding: base64",
            "",
            "",
        ]
        pieces.append(CRLF.join(lines).encode())
        pieces.append(base64.encodebytes(each.content).replace(b"\n", b"\r\n"))
    pieces.append(f"{CRLF}--{boundary}--{CRLF}".encode())
    return b"".join(pieces)
