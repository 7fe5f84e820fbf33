"""The client of one account: its mailboxes, its emails, their changes (RFC 8621), and its blobs.

`connect` finds the session from a location and credentials.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import httpx

from jmapfs import __version__
from jmapfs.deadline import Deadline, Stall
from jmapfs.jmap.api import DEFAULT_DEADLINE
from jmapfs.jmap.blob_get import BlobGetMethods
from jmapfs.jmap.blobs import BlobMethods
from jmapfs.jmap.changes import ChangeMethods
from jmapfs.jmap.credentials import Credentials
from jmapfs.jmap.discovery import Resolver, discover, look_up
from jmapfs.jmap.http import CONCURRENCY, LONGEST_WAIT, Transport
from jmapfs.jmap.login import Login
from jmapfs.jmap.push import PushMethods
from jmapfs.jmap.session import Session


class Client(ChangeMethods, BlobMethods, BlobGetMethods, PushMethods):
    """The mail of one account, read only. Safe for many tasks at once.

    All methods raise the errors of Api.request. Each request has DEFAULT_DEADLINE seconds.
    """

    def stall(self) -> Stall:
        """Return what notices that requests bring nothing any more."""
        traffic = self.traffic
        return Stall(
            lambda: (traffic.objects, traffic.blobs),
            lambda: traffic.bytes,
            lambda: self.transport.is_waiting,
        )


class ConnectOptions(TypedDict, total=False):
    """The options of `open_session` and `connect`."""

    rewrite_origin: bool
    ca_file: Path | None
    longest_wait: float
    on_wait: Callable[[str, float], None] | None
    network: httpx.AsyncBaseTransport | None
    resolver: Resolver
    deadline: float
    concurrency: int
    user_agent: str


class Connection(NamedTuple):
    """A session, and the transport that found it."""

    session: Session
    transport: Transport


@asynccontextmanager
async def open_session(
    location: str,
    login: Login | Credentials,
    *,
    rewrite_origin: bool = False,
    ca_file: Path | None = None,
    longest_wait: float = LONGEST_WAIT,
    on_wait: Callable[[str, float], None] | None = None,
    network: httpx.AsyncBaseTransport | None = None,
    resolver: Resolver = look_up,
    deadline: float = DEFAULT_DEADLINE,
    concurrency: int = CONCURRENCY,
    user_agent: str = f"jmapfs/{__version__}",
) -> AsyncIterator[Connection]:
    """Find the session for `location`: a session URL, a host or a mail address.

    With `rewrite_origin`, all URLs keep the origin that `location` leads to. Finding the session
    takes at most `deadline` seconds, and up to `longest_wait` seconds more if the server asks to
    wait. At most `concurrency` requests are in flight. `network` and `resolver` replace the network
    in tests. `ca_file` and `on_wait` have the same meaning as in Transport. Raises ConfigError,
    AuthenticationError, UnreachableError or ServerError if there is no session.
    """
    if not isinstance(login, Login):
        login = Login(login)
    transport = Transport(
        login,
        user_agent=user_agent,
        network=network,
        ca_file=ca_file,
        longest_wait=longest_wait,
        on_wait=on_wait,
        concurrency=concurrency,
    )
    async with transport:
        async with login.attempt():
            session = await discover(
                location,
                transport,
                deadline=Deadline(deadline),
                resolver=resolver,
                rewrite_origin=rewrite_origin,
            )
        yield Connection(session, transport)


@asynccontextmanager
async def connect(
    location: str,
    login: Login | Credentials,
    *,
    account: str | None = None,
    **options: Unpack[ConnectOptions],
) -> AsyncIterator[Client]:
    """Find the session for `location`, and yield a client for one of its accounts.

    `account` is the id or name of an account, or None for the primary account. The `options` are
    those of `open_session`. Raises the errors of `open_session`, and ConfigError or ServerError if
    there is no such account.
    """
    async with open_session(location, login, **options) as (session, transport):
        yield Client(transport, session, session.mail_account(account).id)
