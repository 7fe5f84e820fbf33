"""The other end of the control endpoint: a synchronous client for tests, typed.

Its methods are those of `Account`, with the same names and arguments; beside them it reads and
sets quirks and counts, and dumps what the account truly holds, to compare a mount with.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec

from .account import SOME_DAY, NewEmail
from .counts import Counts
from .model import Mailbox, utc_date
from .quirks import Quirks


class ControlError(Exception):
    """The server did not do what it was told, and says why."""


@dataclass(frozen=True, slots=True)
class DumpedEmail:
    """An email as the server holds it."""

    id: str
    blob_id: str
    thread_id: str
    sha256: str
    size: int
    received_at: str
    mailbox_ids: list[str]
    keywords: list[str]
    subject: str | None


@dataclass(frozen=True, slots=True)
class Dump:
    """An account as the server holds it."""

    account_id: str
    states: dict[str, str]
    mailboxes: list[Mailbox]
    emails: list[DumpedEmail]

    def emails_in(self, mailbox_id: str) -> list[DumpedEmail]:
        return [email for email in self.emails if mailbox_id in email.mailbox_ids]

    def mailbox(self, name: str) -> Mailbox:
        """Return the first mailbox of that name."""
        return next(box for box in self.mailboxes if box.name == name)


class ControlClient:
    """Tells a server what to do; `account` chooses another than the primary one."""

    def __init__(self, url: str, account_id: str | None = None) -> None:
        self.url = url
        self._account_id = account_id
        # No environment proxies; and never an answer to wait for in vain.
        self._http = httpx.Client(base_url=url + "/", timeout=30, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def account(self, account_id: str) -> ControlClient:
        """Return a client for another account, to be closed by itself."""
        return ControlClient(self.url, account_id)

    # Quirks, counts and the whole

    def quirks(self) -> Quirks:
        return msgspec.convert(self._ask("GET", "quirks"), Quirks)

    def set_quirks(self, **values: Any) -> None:
        """Set some of the fields of Quirks; the others stay."""
        self._ask("POST", "quirks", msgspec.to_builtins(values))

    def reset_quirks(self) -> None:
        self._ask("DELETE", "quirks")

    def counts(self) -> Counts:
        return Counts.from_json(self._ask("GET", "counts"))

    def reset_counts(self) -> None:
        self._ask("DELETE", "counts")

    def dump(self) -> Dump:
        return msgspec.convert(self._ask("POST", "dump", {"account": self._account_id}), Dump)

    def blob(self, blob_id: str) -> bytes:
        body = {"account": self._account_id, "blob_id": blob_id}
        return self._send("POST", "blob", body).content

    def save(self, path: Path) -> None:
        """Have the server keep its accounts in a file."""
        self._ask("POST", "save", {"path": str(path)})

    def set_credentials(self, username: str, password: str | None, token: str | None) -> None:
        body = {"username": username, "password": password, "token": token}
        self._ask("POST", "credentials", body)

    def add_account(self, account_id: str, name: str, *, is_personal: bool = False) -> None:
        """Share one more, empty account."""
        body = {"account_id": account_id, "name": name, "is_personal": is_personal}
        self._ask("POST", "account", body)

    # The operations of Account

    def create_mailbox(
        self,
        name: str,
        parent_id: str | None = None,
        role: str | None = None,
        *,
        mailbox_id: str | None = None,
        sort_order: int = 0,
        is_subscribed: bool = True,
        may_read_items: bool = True,
    ) -> str:
        return self._call_for_id(
            "create_mailbox",
            name=name,
            parent_id=parent_id,
            role=role,
            mailbox_id=mailbox_id,
            sort_order=sort_order,
            is_subscribed=is_subscribed,
            may_read_items=may_read_items,
        )

    def rename_mailbox(self, mailbox_id: str, name: str) -> None:
        self._call("rename_mailbox", mailbox_id=mailbox_id, name=name)

    def move_mailbox(self, mailbox_id: str, parent_id: str | None) -> None:
        self._call("move_mailbox", mailbox_id=mailbox_id, parent_id=parent_id)

    def destroy_mailbox(self, mailbox_id: str) -> None:
        self._call("destroy_mailbox", mailbox_id=mailbox_id)

    def change_mailbox_ids(self) -> dict[str, str]:
        return msgspec.convert(self._call("change_mailbox_ids"), dict[str, str])

    def add_email(
        self,
        raw: bytes,
        mailbox_ids: Iterable[str],
        keywords: Iterable[str] = (),
        received_at: str | datetime = SOME_DAY,
        *,
        email_id: str | None = None,
    ) -> str:
        return self._call_for_id(
            "add_email",
            raw=base64.b64encode(raw).decode(),
            mailbox_ids=list(mailbox_ids),
            keywords=list(keywords),
            received_at=utc_date(received_at),
            email_id=email_id,
        )

    def add_emails(self, emails: Sequence[NewEmail]) -> list[str]:
        # msgspec has bytes as base64 in JSON, on both ends.
        made = self._call("add_emails", emails=[asdict(each) for each in emails])
        return msgspec.convert(made, list[str])

    def copy_email(self, email_id: str, mailbox_id: str) -> None:
        self._call("copy_email", email_id=email_id, mailbox_id=mailbox_id)

    def remove_email(self, email_id: str, mailbox_id: str) -> None:
        self._call("remove_email", email_id=email_id, mailbox_id=mailbox_id)

    def move_email(self, email_id: str, from_id: str, to_id: str) -> None:
        self._call("move_email", email_id=email_id, from_id=from_id, to_id=to_id)

    def set_mailboxes(self, email_id: str, mailbox_ids: Iterable[str]) -> None:
        self._call("set_mailboxes", email_id=email_id, mailbox_ids=list(mailbox_ids))

    def set_keywords(self, email_id: str, keywords: Iterable[str]) -> None:
        self._call("set_keywords", email_id=email_id, keywords=list(keywords))

    def destroy_email(self, email_id: str) -> None:
        self._call("destroy_email", email_id=email_id)

    def destroy_emails(self, email_ids: Iterable[str]) -> None:
        self._call("destroy_emails", email_ids=list(email_ids))

    def change_email_ids(self, email_ids: Iterable[str] | None = None) -> dict[str, str]:
        chosen = None if email_ids is None else list(email_ids)
        return msgspec.convert(self._call("change_email_ids", email_ids=chosen), dict[str, str])

    def forget_changes(self) -> None:
        self._call("forget_changes")

    # Inside

    def _call_for_id(self, method: str, **arguments: Any) -> str:
        return msgspec.convert(self._call(method, **arguments), str)

    def _call(self, method: str, **arguments: Any) -> Any:
        body = {"account": self._account_id, "method": method, "arguments": arguments}
        return self._ask("POST", "call", body)

    def _ask(self, method: str, action: str, body: dict[str, Any] | None = None) -> Any:
        return msgspec.json.decode(self._send(method, action, body).content)["result"]

    def _send(self, method: str, action: str, body: dict[str, Any] | None) -> httpx.Response:
        content = None if body is None else msgspec.json.encode(body)
        response = self._http.request(method, action, content=content)
        if response.status_code != 200:
            raise ControlError(response.text or f"HTTP {response.status_code}")
        return response
