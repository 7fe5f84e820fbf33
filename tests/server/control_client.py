"""A synchronous, typed client of the control endpoint.

It has the operations of `Account`, with the same names and arguments. It also reads and sets quirks
and counts, and dumps the account for comparison with a mount.
"""

from __future__ import annotations

import base64
import ssl
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
    """The server refused an operation; the text is the reason."""


@dataclass(frozen=True, slots=True)
class DumpedEmail:
    """An email on the server."""

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
    """An account on the server."""

    account_id: str
    states: dict[str, str]
    mailboxes: list[Mailbox]
    emails: list[DumpedEmail]

    def emails_in(self, mailbox_id: str) -> list[DumpedEmail]:
        return [email for email in self.emails if mailbox_id in email.mailbox_ids]

    def mailbox(self, name: str) -> Mailbox:
        """Return the first mailbox with that name."""
        return next(box for box in self.mailboxes if box.name == name)


class ControlClient:
    """Controls a server; `account` returns a client for another than the primary account."""

    def __init__(self, url: str, account_id: str | None = None) -> None:
        self.url = url
        self._account_id = account_id
        self._http = httpx.Client(
            base_url=url + "/",
            # A test must not wait forever.
            timeout=30,
            # There is no TLS, and loading the certificates takes longer than all calls of a test.
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            # Loopback needs no proxy of the environment.
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def account(self, account_id: str) -> ControlClient:
        """Return a client for another account; the caller closes it."""
        return ControlClient(self.url, account_id)

    # Quirks, counts and dumps

    def quirks(self) -> Quirks:
        return msgspec.convert(self._request("GET", "quirks"), Quirks)

    def set_quirks(self, **values: Any) -> None:
        """Set some fields of Quirks; the others keep their values."""
        self._request("POST", "quirks", msgspec.to_builtins(values))

    def reset_quirks(self) -> None:
        self._request("DELETE", "quirks")

    def counts(self) -> Counts:
        return Counts.from_json(self._request("GET", "counts"))

    def reset_counts(self) -> None:
        self._request("DELETE", "counts")

    def dump(self) -> Dump:
        return msgspec.convert(self._request("POST", "dump", {"account": self._account_id}), Dump)

    def blob(self, blob_id: str) -> bytes:
        body = {"account": self._account_id, "blob_id": blob_id}
        return self._send("POST", "blob", body).content

    def save(self, path: Path) -> None:
        """Save the accounts, credentials and quirks of the server in a file."""
        self._request("POST", "save", {"path": str(path)})

    def set_credentials(self, username: str, password: str | None, token: str | None) -> None:
        body = {"username": username, "password": password, "token": token}
        self._request("POST", "credentials", body)

    def add_account(self, account_id: str, name: str, *, is_personal: bool = False) -> None:
        """Share another account, an empty one."""
        body = {"account_id": account_id, "name": name, "is_personal": is_personal}
        self._request("POST", "account", body)

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
        # msgspec encodes bytes as base64 in JSON, and the server decodes them.
        created = self._call("add_emails", emails=[asdict(each) for each in emails])
        return msgspec.convert(created, list[str])

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

    def reset(
        self,
        mails: Iterable[bytes],
        *,
        received_at: Sequence[str | datetime] | None = None,
        equal_sizes: bool = False,
    ) -> list[str]:
        dates = None if received_at is None else [utc_date(each) for each in received_at]
        created = self._call(
            "reset",
            mails=[base64.b64encode(raw).decode() for raw in mails],
            received_at=dates,
            equal_sizes=equal_sizes,
        )
        return msgspec.convert(created, list[str])

    def forget_changes(self) -> None:
        self._call("forget_changes")

    # Internals

    def _call_for_id(self, method: str, **arguments: Any) -> str:
        return msgspec.convert(self._call(method, **arguments), str)

    def _call(self, method: str, **arguments: Any) -> Any:
        body = {"account": self._account_id, "method": method, "arguments": arguments}
        return self._request("POST", "call", body)

    def _request(self, method: str, action: str, body: dict[str, Any] | None = None) -> Any:
        return msgspec.json.decode(self._send(method, action, body).content)["result"]

    def _send(self, method: str, action: str, body: dict[str, Any] | None) -> httpx.Response:
        content = None if body is None else msgspec.json.encode(body)
        response = self._http.request(method, action, content=content)
        if response.status_code != 200:
            raise ControlError(response.text or f"HTTP {response.status_code}")
        return response
