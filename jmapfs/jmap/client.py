"""The client: from a location and credentials to the mail of one account."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import trio

from jmapfs import __version__
from jmapfs.errors import ProtocolError
from jmapfs.jmap.api import DEFAULT_DEADLINE, Api
from jmapfs.jmap.batches import BatchMethods
from jmapfs.jmap.blobs import BlobMethods
from jmapfs.jmap.credentials import Credentials
from jmapfs.jmap.discovery import Resolver, discover, look_up
from jmapfs.jmap.http import CONCURRENCY, Traffic, open_transport
from jmapfs.jmap.methods import ChangeMethods, EmailMethods, MailboxMethods
from jmapfs.jmap.push import PushMethods, PushSettings
from jmapfs.jmap.session import Session, SessionAccount


class Client(EmailMethods, MailboxMethods, ChangeMethods, BlobMethods, BatchMethods, PushMethods):
    """The mail of one account, read only. Safe for many tasks at once."""

    @property
    def session(self) -> Session:
        """The session as it was last fetched."""
        return self.api.session

    @property
    def account(self) -> SessionAccount:
        """The account in the session; raises ProtocolError when the session has it no longer."""
        account = self.session.accounts.get(self.account_id)
        if account is None:
            raise ProtocolError("the server's session no longer has the account")
        return account

    @property
    def traffic(self) -> Traffic:
        """What was sent and received so far, by all clients of the session."""
        return self.api.transport.traffic

    @property
    def concurrency(self) -> int:
        """The number of requests that may be under way at once."""
        return self.api.transport.concurrency

    @property
    def blob_ids_are_sha1(self) -> bool:
        """Whether blob ids of `G` and 40 hexadecimal digits are SHA-1s of the content (Cyrus)."""
        return self.session.blob_ids_are_sha1

    def for_account(self, selection: str | None = None) -> Client:
        """Return a client for another account of the session, with the same transport and budget.

        Raises as Session.mail_account. It is of use for as long as this one is.
        """
        return Client(self.api, self.session.mail_account(selection).id, self.push_settings)


@asynccontextmanager
async def connect(
    location: str,
    credentials: Credentials,
    *,
    account: str | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    resolver: Resolver = look_up,
    deadline: float = DEFAULT_DEADLINE,
    concurrency: int = CONCURRENCY,
    user_agent: str = f"jmapfs/{__version__}",
) -> AsyncIterator[Client]:
    """Find the session that `location` leads to, and open the mail of an account in it.

    `location` is a session URL, a host or a mail address; `account` the id or name of an account,
    if not the primary one; `deadline` the seconds for finding it; `concurrency` the requests in
    flight at most. `transport` and `resolver` stand in for the network in tests.

    Raises ConfigError, AuthenticationError, UnreachableError or ServerError.
    """
    async with open_transport(
        credentials, user_agent=user_agent, transport=transport, concurrency=concurrency
    ) as way:
        until = trio.current_time() + deadline
        session = await discover(location, way, until=until, resolver=resolver)
        push_settings = PushSettings(credentials, user_agent, transport)
        yield Client(Api(way, session), session.mail_account(account).id, push_settings)
