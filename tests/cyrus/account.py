"""One account on Cyrus."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from tests.mail_server.account import MailAccount


@dataclass(frozen=True)
class Account(MailAccount):
    """The account of a user; its id is the name of the user."""

    inbox: ClassVar[str] = "Inbox"
    has_push: ClassVar[bool] = False
    has_sha1_ids: ClassVar[bool] = True
    api_path: ClassVar[str] = "/jmap/"
    using: ClassVar[tuple[str, ...]] = (*MailAccount.using, "https://cyrusimap.org/ns/jmap/mail")

    @property
    def account_id(self) -> str:
        """The id of the account in JMAP."""
        return self.name

    def download_path(self, blob_id: str) -> str:
        """Return the path and the query of a blob's URL."""
        return f"/jmap/download/{self.name}/{blob_id}/mail?accept=application/octet-stream"

    def sha1s(self, blob_ids: Iterable[str]) -> dict[str, str]:
        """Return the SHA-1 of each blob, which is part of its id."""
        return {blob_id: blob_id.removeprefix("G") for blob_id in blob_ids}

    def add_to_mailbox(self, email_id: str, mailbox_id: str) -> None:
        """Add an email to another mailbox."""
        self.set_emails(update={email_id: {f"mailboxIds/{mailbox_id}": True}})

    def remove_from_mailbox(self, email_id: str, mailbox_id: str) -> None:
        """Remove an email from one of its mailboxes."""
        self.set_emails(update={email_id: {f"mailboxIds/{mailbox_id}": None}})
