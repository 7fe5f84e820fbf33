"""A server that runs, and a client that speaks to it: what most tests here begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from tests.server import Account, MailServer, Quirks, running_server

CORE = "urn:ietf:params:jmap:core"
MAIL = "urn:ietf:params:jmap:mail"
BLOB = "urn:ietf:params:jmap:blob"
AUTH = ("alice@example.org", "secret")


@dataclass
class Speaker:
    """An authorized client and the server it speaks to."""

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

    async def answers(self, *calls: Any, using: tuple[str, ...] = (CORE, MAIL)) -> list[Any]:
        response = await self.post(*calls, using=using)
        assert response.status_code == 200, response.text
        return list(response.json()["methodResponses"])

    async def call(
        self, name: str, *, using: tuple[str, ...] = (CORE, MAIL), **arguments: Any
    ) -> dict[str, Any]:
        """Make one call; return its response, which for an error has a `type`."""
        call = [name, {"accountId": self.account.id, **arguments}, "c"]
        ((answered, response, _),) = await self.answers(call, using=using)
        assert answered in {name, "error"}
        return dict(response)

    async def download(self, blob_id: str) -> httpx.Response:
        return await self.http.get(f"/jmap/download/{self.account.id}/{blob_id}/a%2Fb?accept=a/b")

    async def quiet(self) -> None:
        """Wait until the server has no request in hand: it ends after its answer arrived."""
        with trio.fail_after(10):
            while self.server.in_flight.total():  # noqa: ASYNC110
                await trio.sleep(0.01)


@asynccontextmanager
async def speaking(
    account: Account | None = None, *, http2: bool = False, **quirks: Any
) -> AsyncIterator[Speaker]:
    """Run a server with an Inbox and speak to it."""
    server = MailServer(account or inbox_of(0), quirks=Quirks(**quirks))
    async with (
        running_server(server) as url,
        httpx.AsyncClient(
            base_url=url, auth=AUTH, timeout=5, trust_env=False, http1=not http2, http2=http2
        ) as http,
    ):
        yield Speaker(server, http)


def inbox_of(count: int) -> Account:
    """Return an account with some mails in its Inbox, Pinbox: M0 the oldest, a minute apart."""
    account = Account()
    account.create_mailbox("Inbox", role="inbox", mailbox_id="Pinbox")
    for number in range(count):
        account.add_email(
            mail(number), ["Pinbox"], received_at=f"2024-03-01T10:{number:02}:00Z",
            email_id=f"M{number}",
        )  # fmt: skip
    return account


def mail(number: int) -> bytes:
    return f"From: A <a@example.org>\r\nSubject: mail {number}\r\n\r\nbody {number}\r\n".encode()
