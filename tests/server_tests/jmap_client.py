"""A running test server and an authorized client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from tests.mails import new_emails, text_mail
from tests.server import Account, MailServer, Quirks, running_server
from tests.server.quirks import BLOB
from tests.server.session import CORE, MAIL

__all__ = ["AUTH", "BLOB", "CORE", "MAIL", "JmapClient", "account_with_inbox", "connected"]

AUTH = ("alice@example.org", "secret")


@dataclass
class JmapClient:
    """An authorized client and its server."""

    server: MailServer
    http: httpx.AsyncClient

    @property
    def account(self) -> Account:
        return self.server.primary

    @property
    def quirks(self) -> Quirks:
        return self.server.quirks

    async def post(self, *calls: Any, using: tuple[str, ...] = (CORE, MAIL)) -> httpx.Response:
        document = {"using": using, "methodCalls": calls}
        return await self.http.post("/jmap/api", json=document)

    async def responses(self, *calls: Any, using: tuple[str, ...] = (CORE, MAIL)) -> list[Any]:
        response = await self.post(*calls, using=using)
        assert response.status_code == 200, response.text
        return list(response.json()["methodResponses"])

    async def call(
        self, name: str, *, using: tuple[str, ...] = (CORE, MAIL), **arguments: Any
    ) -> dict[str, Any]:
        """Make one call; return its response, which has a `type` if it is an error."""
        call = [name, {"accountId": self.account.id, **arguments}, "c"]
        ((answered, response, _),) = await self.responses(call, using=using)
        assert answered in {name, "error"}
        return dict(response)

    async def download(self, blob_id: str) -> httpx.Response:
        return await self.http.get(f"/jmap/download/{self.account.id}/{blob_id}/a%2Fb?accept=a/b")


@asynccontextmanager
async def connected(account: Account | None = None, **quirks: Any) -> AsyncIterator[JmapClient]:
    """Run a server and connect to it; its default account has an empty Inbox."""
    server = MailServer(account or account_with_inbox(0), quirks=Quirks(**quirks))
    async with (
        running_server(server) as url,
        httpx.AsyncClient(base_url=url, auth=AUTH, timeout=5, trust_env=False) as http,
    ):
        yield JmapClient(server, http)


def account_with_inbox(count: int) -> Account:
    """Return an account whose Inbox (Pinbox) has mails M0 (the oldest), M1 and so on."""
    account = Account()
    account.create_mailbox("Inbox", role="inbox", mailbox_id="Pinbox")
    emails = new_emails(map(text_mail, range(count)), "Pinbox")
    account.add_emails(replace(email, id=f"M{number}") for number, email in enumerate(emails))
    return account
