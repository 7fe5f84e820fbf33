"""The account of `lied_to.tar.xz`: what its server sent to the previous version instead of mail.

`make_files` fills the caches of the previous version from a server with these lies. The tests mount
the same account from a server without lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mails import new_emails, text_mail
from tests.server import ControlClient

HOST, PORT = "127.81.7.4", 18457
URL = f"http://{HOST}:{PORT}"

_LARGE = 1_500_000
_BOTH = ["download", "blob-get"]


@dataclass(frozen=True)
class Sent:
    """What the server sent for one mail: the truth, or a lie that `quirks` describe."""

    padding: int
    quirks: dict[str, Any] | None = None
    has_right_size: bool = False

    @property
    def has_wrong_size(self) -> bool:
        """Whether this is a lie that the stated size disproves."""
        return self.quirks is not None and not self.has_right_size


def _lie(kind: str) -> dict[str, Any]:
    return {"lie": kind, "lie_routes": _BOTH}


#: By the number of the mail. The sizes differ, so that another mail's bytes have another length.
SENT = (
    Sent(100),
    Sent(201, _lie("html")),
    Sent(302, _lie("empty")),
    Sent(403, _lie("short")),
    Sent(504, _lie("long")),
    Sent(605, _lie("other-mail")),
    Sent(706),
    Sent(_LARGE),
    Sent(_LARGE + 1000, _lie("short")),
    Sent(_LARGE + 2000, _lie("html")),
    Sent(807, {"download_fault": "wrong-bytes", "blob_fault": "wrong-bytes"}, has_right_size=True),
)

LARGE_LIE = 8


def content(number: int) -> bytes:
    """Return the bytes of a mail."""
    return text_mail(number, padding=SENT[number].padding)


def fill(control: ControlClient) -> None:
    """Create the account. Odd mails are in two mailboxes."""
    for name in ("Inbox", "Work"):
        control.create_mailbox(name, mailbox_id=name)
    for number in range(len(SENT)):
        places = ["Inbox", "Work"] if number % 2 else ["Inbox"]
        control.add_emails(new_emails([content(number)], *places, first=number))


def tell_lie(control: ControlClient, number: int) -> None:
    """Have the server send what it sends for one mail, and the truth for all others."""
    blob_ids = [one.blob_id for one in control.dump().emails if one.subject == f"mail {number}"]
    control.reset_quirks()
    quirks = SENT[number].quirks or {}
    control.set_quirks(**quirks, lie_blob_ids=blob_ids, fault_blob_ids=blob_ids)


def number_of(path: Path) -> int:
    """Return the number of the mail in a file."""
    return int(path.name.split("_mail-")[1].split("_")[0])
