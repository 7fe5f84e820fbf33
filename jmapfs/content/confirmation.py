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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from jmapfs.jmap.blob_get import BlobDigest
from jmapfs.jmap.emails import EmailValues

HEAD_BYTES: Final = 64 * 1024
"""This many bytes at the beginning of a content are enough to recognize a mail."""

_LEAST_MARGIN: Final = 16 * 1024 * 1024

# RFC 5322 §2.2: a field name is printable ASCII without a colon. §4.5 allows spaces before the
# colon. Some mail has names with other bytes. A name that begins with one of the excluded
# characters is JSON or markup.
_HEADER_LINE: Final = re.compile(rb"(?![<\[{\"'])[!-9;-~\x80-\xff]+[ \t]*:")
# After a first line that is not a header line, the rule is stricter.
_LATER_HEADER_LINE: Final = re.compile(rb"[\r\n][A-Za-z0-9][A-Za-z0-9_-]*[ \t]*:")
_MARKUP: Final = (b"<", b"{", b"[", b'"', b"'")
# A mailbox file has such a line before each mail, and some servers keep it.
_MBOX_LINE: Final = re.compile(rb">?From [^\n]*\n")
_BLANK: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"
_HEADER_END: Final = re.compile(rb"\n\r?\n|\r\r")
# With the continuation lines, which begin with white space.
_MESSAGE_ID: Final = re.compile(
    rb"(?:\A|[\r\n])message-id[ \t]*:((?:[^\r\n]|(?:\r\n|\r|\n)[ \t])*)", re.IGNORECASE
)
_PLAIN: Final = re.compile(r"[!-~]+")
# A server may remove these characters from a message id, or keep them: long ids are folded.
_REMOVABLE: Final = b' \t\r\n"\\'
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
    `has_header` is true if they begin like a mail, `is_markup` if they begin like JSON or markup.
    `too_long` is true if the download was given up. `message_ids` is the content of the header
    fields Message-ID, normalized; None if it was not examined, or the header is longer than
    HEAD_BYTES. The digests are None if they were not computed.
    """

    route: Route
    length: int
    is_html: bool
    has_header: bool
    is_markup: bool
    too_long: bool = False
    message_ids: bytes | None = None
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
    """Collects the evidence of one download, chunk by chunk.

    With `message_ids` they are looked for in the header.
    """

    def __init__(self, route: Route, *, message_ids: bool, sha1: bool, sha256: bool) -> None:
        self.length = 0
        self._with_message_ids = message_ids
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
            has_header=has_header_line(head),
            is_markup=head.removeprefix(_BOM).lstrip(_BLANK).startswith(_MARKUP),
            too_long=too_long,
            message_ids=_message_ids(head, self.length) if self._with_message_ids else None,
            sha1=None if self._sha1 is None else self._sha1.digest(),
            sha256=None if self._sha256 is None else self._sha256.digest(),
        )


def examine(
    contents: Iterable[tuple[bytes, int, bytes | None]],
) -> list[tuple[Evidence, str | None]]:
    """Return the evidence of contents of a batch, and why each is in doubt, or None.

    Each content comes with its stated size, and with the SHA-1 in its blob id, if there is one.
    """
    examined: list[tuple[Evidence, str | None]] = []
    for data, size, sha1 in contents:
        with_sha1 = sha1 is not None
        evidence = _evidence_of(data, message_ids=not with_sha1, sha1=with_sha1, sha256=False)
        reason = doubt(evidence, size, sha1)
        if reason is not None:
            evidence = _evidence_of(data, message_ids=False, sha1=True, sha256=True)
        examined.append((evidence, reason))
    return examined


def _evidence_of(data: bytes, *, message_ids: bool, sha1: bool, sha256: bool) -> Evidence:
    examination = Examination(Route.BLOB_GET, message_ids=message_ids, sha1=sha1, sha256=sha256)
    examination.update(data)
    return examination.evidence()


def most_bytes(size: int) -> int:
    """Return how long a download of a mail of `size` bytes may be; it is given up after that.

    A small mail is held in memory, so the limit depends on the size.
    """
    return size + max(size, _LEAST_MARGIN)


def has_header_line(head: bytes) -> bool:
    """Return whether a content begins like a mail: a header line comes before an empty line.

    A byte order mark, a line of a mailbox file ("From …") and blank lines may come first. If the
    content begins like JSON or markup, the first line must be a header line.
    """
    head = head.removeprefix(_BOM).lstrip(_BLANK)
    mbox = _MBOX_LINE.match(head)
    if _HEADER_LINE.match(head, mbox.end() if mbox else 0):
        return True
    end = _HEADER_END.search(head)
    return (
        not head.startswith(_MARKUP)
        and _LATER_HEADER_LINE.search(head, 0, end.start() if end else len(head)) is not None
    )


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
    does not, the caller must also ask the server what it states now, and call `contradiction`.
    """
    if sha1 is not None:
        return None if _is_proven(evidence, sha1) else _unproven(evidence, size)
    return implausible(evidence, size) or _other_length(evidence, size)


def contradiction(evidence: Evidence, stated: EmailValues) -> str | None:
    """Return why bytes of a first attempt are not the mail that the server states now, or None."""
    if evidence.length != stated.size:
        return f"the server now states {stated.size:,} bytes"
    return _other_message_id(evidence, stated)


def refusal(
    first: Evidence | None,
    second: Evidence,
    size: int,
    stated: EmailValues | None = None,
    *,
    sha1: bytes | None = None,
    digest: BlobDigest | None = None,
    repeated: bool = False,
) -> str | None:
    """Return why the bytes of a second attempt are refused, or None if they are accepted.

    `first` is None if the first attempt has no bytes to compare. `size` is the expected size. Only
    if `sha1` is given, `stated` may be None. `repeated` tells whether the server has stated the
    same size before. `digest` is the digest that the server states, if it offers digests.
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
    if stated is None:
        raise ValueError("nothing is known about the content")
    if not _is_without_header(first, second, stated, repeated=repeated):
        reason = implausible(second, stated.size) or _other_message_id(second, stated)
        if reason is not None:
            return reason
    if second.length == stated.size:
        return None
    confirmed = (
        repeated
        and first is not None
        and first.route is not second.route
        and first.has_same_bytes(second)
    )
    return None if confirmed else _other_length(second, stated.size)


def _is_without_header(
    first: Evidence | None, second: Evidence, stated: EmailValues, *, repeated: bool
) -> bool:
    """Return whether bytes without a header line are the mail that the server states.

    Some servers store such mail. An error message in plain text would also come twice, but it has
    the stated size only by chance, and the server would state the Message-ID of the mail.
    """
    return (
        repeated
        and first is not None
        and first.has_same_bytes(second)
        and second.length == stated.size > 0
        and not stated.message_ids
        and not (second.has_header or second.is_markup or second.is_html or first.is_html)
    )


def _message_ids(head: bytes, length: int) -> bytes | None:
    """Return the normalized content of the fields Message-ID; None if the header is not whole."""
    head = head.removeprefix(_BOM).lstrip(_BLANK)
    end = _HEADER_END.search(head)
    if end is None and length > HEAD_BYTES:
        return None
    fields = _MESSAGE_ID.findall(head, 0, end.start() if end else len(head))
    return b"\n".join(field.translate(None, _REMOVABLE).lower() for field in fields)


def _other_message_id(evidence: Evidence, stated: EmailValues) -> str | None:
    """Return a reason if the header has none of the message ids that the server states.

    Only plain ids are compared. The server may have decoded others.
    """
    plain = [
        each.encode().translate(None, _REMOVABLE).lower()
        for each in stated.message_ids
        if _PLAIN.fullmatch(each)
    ]
    found = evidence.message_ids
    if found is None or not plain or any(each in found for each in plain):
        return None
    return "the Message-ID is not the one that the server states"


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
