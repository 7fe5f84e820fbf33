"""When downloaded bytes are accepted as the content of a mail.

An id does not prove content, except on servers whose blob ids contain a SHA-1. So bytes are
accepted only with more evidence than a successful response: the size that the server states, the
look of a mail, and in doubt a second download by another route. Bytes that are not accepted are in
doubt. After the second attempt they are accepted or refused.

This module only judges; `download` gets the evidence.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from jmapfs.jmap.blob_get import BlobDigest

HEAD_BYTES: Final = 64 * 1024
"""This many bytes at the beginning of a content are enough to recognize a mail."""

MARGIN_BYTES: Final = 64 * 1024 * 1024
"""A download is given up if it exceeds the stated size by more than this."""

_SHA1_BLOB_ID: Final = re.compile(r"G([0-9a-f]{40})")
# RFC 5322 §2.2: a field name is printable ASCII without a colon. §4.5 allows spaces before the
# colon. A name that begins with one of the excluded characters is JSON or markup.
_HEADER_LINE: Final = re.compile(rb"(?![<\[{\"'])[!-9;-~]+[ \t]*:")
# A mailbox file has such a line before each mail, and some servers keep it.
_MBOX_LINE: Final = re.compile(rb">?From [^\n]*\n")
_BLANK: Final = b" \t\r\n"
_HTML: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE
)
_HTML_TYPES: Final = frozenset({"text/html", "application/xhtml+xml"})


class Route(enum.Enum):
    """How a content was downloaded."""

    DOWNLOAD = enum.auto()
    """From the download URL (RFC 8620 §6.2)."""
    BLOB_GET = enum.auto()
    """By the method Blob/get (RFC 9404 §4.2)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the bytes of one download.

    `length` is in bytes. `is_html` is true if the response says so, or the bytes look so.
    `has_header` is true if the bytes begin with a header line. `too_long` is true if the download
    was given up. The digests are None if they were not computed.
    """

    route: Route
    length: int
    is_html: bool
    has_header: bool
    too_long: bool = False
    sha1: bytes | None = None
    sha256: bytes | None = None

    def has_same_bytes(self, other: Evidence) -> bool:
        """Return whether two complete downloads have the same bytes."""
        if self.too_long or other.too_long or self.length != other.length:
            return False
        if self.sha256 is not None and other.sha256 is not None:
            return self.sha256 == other.sha256
        return self.sha1 is not None and self.sha1 == other.sha1


class Examination:
    """Collects the evidence of one download, chunk by chunk."""

    def __init__(self, route: Route, *, sha1: bool, sha256: bool) -> None:
        self.length = 0
        self._route = route
        self._head = bytearray()
        self._sha1 = hashlib.sha1(usedforsecurity=False) if sha1 else None
        self._sha256 = hashlib.sha256() if sha256 else None

    def update(self, data: bytes) -> None:
        """Add the next bytes."""
        self.length += len(data)
        if len(self._head) < HEAD_BYTES:
            self._head += data[: HEAD_BYTES - len(self._head)]
        if self._sha1 is not None:
            self._sha1.update(data)
        if self._sha256 is not None:
            self._sha256.update(data)

    def evidence(self, *, content_type: str = "", too_long: bool = False) -> Evidence:
        """Return the evidence; `content_type` is the media type of the response, in lower case."""
        head = bytes(self._head)
        return Evidence(
            self._route,
            self.length,
            is_html=content_type in _HTML_TYPES or _HTML.match(head) is not None,
            has_header=begins_with_header(head),
            too_long=too_long,
            sha1=None if self._sha1 is None else self._sha1.digest(),
            sha256=None if self._sha256 is None else self._sha256.digest(),
        )


def sha1_of(blob_id: str) -> bytes | None:
    """Return the SHA-1 in a blob id of Cyrus, or None. Only for servers that make such ids."""
    match = _SHA1_BLOB_ID.fullmatch(blob_id)
    return bytes.fromhex(match[1]) if match else None


def begins_with_header(head: bytes) -> bool:
    """Return whether a content begins like a mail: with a header line.

    A line of a mailbox file ("From …") and blank lines may come before the header line.
    """
    head = head.lstrip(_BLANK)
    mbox = _MBOX_LINE.match(head)
    return _HEADER_LINE.match(head, mbox.end() if mbox else 0) is not None


def implausible(evidence: Evidence, size: int) -> str | None:
    """Return why bytes cannot be a mail of `size` bytes, whatever the server says, or None."""
    if evidence.too_long:
        return f"the server sent more than {evidence.length:,} bytes for {_mail_of(size)}"
    if evidence.is_html:
        return "the server sent a web page"
    if not evidence.length and size:
        return f"the server sent an empty body for {_mail_of(size)}"
    if evidence.length and not evidence.has_header:
        return "the server sent bytes without a header line"
    return None


def doubt(evidence: Evidence, size: int, sha1: bytes | None) -> str | None:
    """Return why the bytes of a first attempt are not accepted, or None.

    `size` is the expected size. `sha1` is the digest in the blob id, if the id contains one. If it
    does not, the caller must also ask the server whether it still states this size.
    """
    if sha1 is not None:
        return None if _is_proven(evidence, sha1) else _unproven(evidence, size)
    return implausible(evidence, size) or _other_length(evidence, size)


def refusal(
    first: Evidence | None,
    second: Evidence,
    size: int,
    *,
    sha1: bytes | None = None,
    digest: BlobDigest | None = None,
    repeated: bool = False,
) -> str | None:
    """Return why the bytes of a second attempt are refused, or None if they are accepted.

    `first` is None if the first attempt has no bytes to compare. `size` is the size that the server
    states now. `repeated` tells whether it has stated the same size before. `digest` is the digest
    that the server states, if it offers digests.
    """
    if sha1 is not None:
        return None if _is_proven(second, sha1) else _unproven(second, size)
    if digest is not None:
        actual = second.sha256 if digest.algorithm == "sha-256" else second.sha1
        if second.too_long or actual != digest.digest:
            return (
                implausible(second, size)
                or "the bytes do not have the digest that the server states"
            )
        return None
    reason = implausible(second, size)
    if reason is not None:
        return reason
    if second.length == size:
        return None
    confirmed = (
        repeated
        and first is not None
        and first.route is not second.route
        and first.has_same_bytes(second)
    )
    return None if confirmed else _other_length(second, size)


def _is_proven(evidence: Evidence, sha1: bytes) -> bool:
    return not evidence.too_long and evidence.sha1 == sha1


def _unproven(evidence: Evidence, size: int) -> str:
    return (
        implausible(evidence, size)
        or _other_length(evidence, size)
        or "the bytes do not have the SHA-1 in the blob id"
    )


def _other_length(evidence: Evidence, size: int) -> str | None:
    if evidence.length == size:
        return None
    return f"the server sent {evidence.length:,} bytes for {_mail_of(size)}"


def _mail_of(size: int) -> str:
    return f"a mail of {size:,} bytes"
