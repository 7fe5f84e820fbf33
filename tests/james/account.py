"""One account on James."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tests.mail_server.account import MailAccount


@dataclass(frozen=True)
class Account(MailAccount):
    """The account of a user; its id is the SHA-256 of the user's name, in hexadecimal."""

    has_push: ClassVar[bool] = True
    # To find its thread, James compares each new mail with all others: 1,400 take two minutes.
    most_mails: ClassVar[int] = 150
    separator: ClassVar[str] = "."
    append_batch: ClassVar[int] = 1
    has_sha1_ids: ClassVar[bool] = False
    api_path: ClassVar[str] = "/jmap"
    headers: ClassVar[Mapping[str, str]] = {"Accept": "application/json; jmapVersion=rfc-8621"}

    @property
    def account_id(self) -> str:
        """The id of the account in JMAP."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    def download_path(self, blob_id: str) -> str:
        """Return the path and the query of a blob's URL."""
        return f"/download/{self.account_id}/{blob_id}?type=application/octet-stream&name=mail"
