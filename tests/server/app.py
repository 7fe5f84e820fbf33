"""The server: its accounts, quirks, counts and ASGI application, and serving it over HTTP."""

from __future__ import annotations

import logging
import math
import pickle
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .account import Account
from .api import serve_api
from .auth import Credentials
from .control import Control
from .counts import Counts
from .download import serve_download
from .endpoint import Endpoint
from .lies import Liar
from .push import Changed, serve_events
from .quirks import Quirks
from .session import API_PATH, serve_session, serve_well_known

PageHook = Callable[[Account, int], None]


class MailServer:
    """A JMAP server in memory, served by `running_server`; the first account is the primary one.

    Its attributes may be read and changed while it runs, from its own thread.
    """

    def __init__(
        self,
        accounts: Iterable[Account] | Account | None = None,
        *,
        credentials: Credentials | None = None,
        quirks: Quirks | None = None,
        control_token: str | None = None,
    ) -> None:
        if accounts is None:
            accounts = Account()
        if isinstance(accounts, Account):
            accounts = [accounts]
        self.accounts = {account.id: account for account in accounts}
        self.credentials = credentials or Credentials()
        self.quirks = quirks or Quirks()
        self.counts = Counts()
        self.control_token = control_token or secrets.token_urlsafe(16)
        self.page_hooks: list[PageHook] = []  # called before each page of Email/query
        self.query_page = 0
        self.in_flight: Counter[str] = Counter()  # requests by endpoint
        self.refused: Counter[str] = Counter()  # … of these, those over the limit
        self.bugs: list[Exception] = []
        self.liar = Liar()
        self._listeners: set[trio.MemorySendChannel[Changed]] = set()
        self._announced: dict[str, dict[str, str]] = {}
        for account in self.accounts.values():
            self._announced[account.id] = account.states
            account.watchers.append(self._announce)
        self._app = self._routes()
        self.apply_blob_ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    @property
    def primary(self) -> Account:
        return next(iter(self.accounts.values()))

    def add_account(self, account: Account) -> None:
        """Share another account; the session changes."""
        self.accounts[account.id] = account
        self._announced[account.id] = account.states
        account.watchers.append(self._announce)

    def apply_blob_ids(self) -> None:
        """Give all blobs ids that are SHA-1s, if the quirks demand it."""
        if self.quirks.sha1_blob_ids:
            for account in self.accounts.values():
                account.use_sha1_blob_ids()

    @contextmanager
    def listen(self) -> Iterator[trio.MemoryReceiveChannel[Changed]]:
        """Receive every change of a state during the block."""
        sender, receiver = trio.open_memory_channel[Changed](math.inf)
        self._listeners.add(sender)
        with sender, receiver:
            try:
                yield receiver
            finally:
                self._listeners.discard(sender)

    async def wait_until_idle(self) -> None:
        """Wait until no request is in flight: its handler ends after the client has its response.

        Raises:
            trio.TooSlowError: a request does not end within 10 seconds.
        """
        with trio.fail_after(10):
            while self.in_flight.total():  # noqa: ASYNC110
                await trio.sleep(0.01)

    def save(self, path: Path) -> None:
        """Save accounts, credentials and quirks in a file, for `load` in another process."""
        saved = (list(self.accounts.values()), self.credentials, self.quirks)
        path.write_bytes(pickle.dumps(saved))

    @classmethod
    def load(cls, path: Path, *, control_token: str | None = None) -> MailServer:
        """Return a server with the contents of a file that `save` wrote."""
        accounts, credentials, quirks = pickle.loads(path.read_bytes())  # noqa: S301  our own file
        return cls(accounts, credentials=credentials, quirks=quirks, control_token=control_token)

    def _announce(self, account: Account) -> None:
        before, now = self._announced[account.id], account.states
        changed = {kind: state for kind, state in now.items() if before[kind] != state}
        self._announced[account.id] = now
        if changed:
            for listener in self._listeners:
                listener.send_nowait({account.id: changed})

    def _routes(self) -> Starlette:
        session = Endpoint(self, "session", serve_session)
        well_known = Endpoint(self, "session", serve_well_known)
        download = Endpoint(self, "download", serve_download)
        events = Endpoint(self, "push", serve_events)
        return Starlette(
            routes=[
                Route("/.well-known/jmap", well_known, methods=["GET"]),
                Route("/session", session, methods=["GET"]),
                Route(API_PATH, Endpoint(self, "api", serve_api), methods=["POST"]),
                Route("/jmap/download/{account}/{blob}/{name:path}", download, methods=["GET"]),
                Route("/jmap/eventsource", events, methods=["GET"]),
                Route("/control/{token}/{action}", Control(self)),
            ]
        )


@asynccontextmanager
async def running_server(
    server: MailServer, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve on loopback; yield the URL without a slash at its end.

    The end of the block closes open connections.

    Raises:
        ExceptionGroup: the server had bugs, whose status 500 looks like a fault of a test.
    """
    async with trio.open_nursery() as nursery:
        # Hypercorn has its own names for the ASGI types.
        binds = await nursery.start(partial(serve, cast("Any", server), _config(host, port)))
        try:
            yield binds[0]
        finally:
            nursery.cancel_scope.cancel()
    if server.bugs:
        raise ExceptionGroup("bugs in the test server", server.bugs)


def _config(host: str, port: int) -> Config:
    config = Config()
    config.bind = [f"{host}:{port}"]
    config.errorlog = logging.getLogger("tests.server.hypercorn")
    config.errorlog.setLevel(logging.WARNING)
    config.accesslog = None
    config.include_server_header = False
    config.graceful_timeout = 0.2
    # Clients decide how long a connection lives; a benchmark must not reconnect.
    config.keep_alive_timeout = 300
    config.keep_alive_max_requests = 10_000_000
    config.backlog = 1024
    return config
