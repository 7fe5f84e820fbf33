"""Well framed responses whose content is not that of the requested blob.

Unlike a fault of the transfer, a lie has the status, the length and the size of a correct response.
The digests of Blob/get, and the size in Email/get, stay those of the real blob.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .account import Account
    from .quirks import Quirks

Lie = Literal["html", "empty", "short", "long", "other-mail"]
LieRoute = Literal["download", "blob-get"]

LOGIN_PAGE = b"<!doctype html><title>Log in</title><form method=post><input name=user></form>\n"
DIFFERENCE = 40
"""The bytes that "short" removes and "long" adds."""


class Liar:
    """Tells the lies of the quirks.

    The ranges of a blob are parts of the same lie, from its start to its end: a lie is counted at
    offset 0.
    """

    def __init__(self) -> None:
        self._lied_about: set[str] = set()

    def content(
        self, quirks: Quirks, account: Account, blob_id: str, route: LieRoute, *, offset: int = 0
    ) -> bytes | None:
        """Return the content to send instead of the blob; None to send the blob itself."""
        lie = quirks.lie
        if (
            lie is None
            or route not in quirks.lie_routes
            or (quirks.lie_blob_ids and blob_id not in quirks.lie_blob_ids)
        ):
            return None
        if offset == 0 and quirks.lie_count:
            quirks.lie_count -= quirks.lie_count > 0
            self._lied_about.add(blob_id)
        elif offset == 0 or blob_id not in self._lied_about:
            self._lied_about.discard(blob_id)
            return None
        raw = account.blobs.read(blob_id) or b""
        return _lie(lie, account, blob_id, raw, equal_size=quirks.lie_equal_size)


def _lie(lie: Lie, account: Account, blob_id: str, raw: bytes, *, equal_size: bool) -> bytes:
    match lie:
        case "html":
            return _resized(LOGIN_PAGE, len(raw), b" ") if equal_size else LOGIN_PAGE
        case "empty":
            return b""
        case "short":
            return raw[:-DIFFERENCE] if len(raw) > DIFFERENCE else raw[: len(raw) // 2]
        case "long":
            return raw + b"?" * DIFFERENCE
        case "other-mail":
            return _other_mail(account, blob_id, len(raw), equal_size=equal_size)


def _other_mail(account: Account, blob_id: str, size: int, *, equal_size: bool) -> bytes:
    """Return another mail of the account; if none has the right size, a mail that is made up."""
    for email in account.emails.values():
        if email.blob_id != blob_id and (email.size == size) == equal_size:
            return account.blobs.read(email.blob_id) or b""
    made_up = b"From: other@example.org\r\nSubject: Another mail\r\n\r\n"
    return _resized(made_up, size if equal_size else size + 1, b"x")


def _resized(content: bytes, size: int, filling: bytes) -> bytes:
    return content[:size].ljust(size, filling)
