"""The server: its accounts, its quirks, what it was asked, and its ASGI application."""

from __future__ import annotations

import math
import pickle
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .account import Account
from .api import serve_api
from .auth import Credentials
from .control import Control
from .counts import Counts
from .door import Door
from .download import serve_download
from .push import Changed, serve_events
from .quirks import Quirks
from .session import API_PATH, serve_session, serve_well_known

PageHook = Callable[[Account, int], None]


class MailServer:
    """A JMAP server in memory, to be served by `running_server`; the first account is primary.

    Everything here may be looked at and changed while it runs, from its own thread.
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
        self.in_flight: Counter[str] = Counter()  # requests by place
        self.refused: Counter[str] = Counter()  # … of which over the limit
        self.bugs: list[Exception] = []
        self._listeners: set[trio.MemorySendChannel[Changed]] = set()
        self._announced: dict[str, dict[str, str]] = {}
        for account in self.accounts.values():
            self._announced[account.id] = account.states
            account.watchers.append(self._announce)
        self._app = self._routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    @property
    def primary(self) -> Account:
        return next(iter(self.accounts.values()))

    def add_account(self, account: Account) -> None:
        """Share one more account; the session changes."""
        self.accounts[account.id] = account
        self._announced[account.id] = account.states
        account.watchers.append(self._announce)

    @contextmanager
    def listen(self) -> Iterator[trio.MemoryReceiveChannel[Changed]]:
        """Hear of every change of a state while in the block."""
        sender, receiver = trio.open_memory_channel[Changed](math.inf)
        self._listeners.add(sender)
        with sender, receiver:
            try:
                yield receiver
            finally:
                self._listeners.discard(sender)

    def save(self, path: Path) -> None:
        """Keep accounts, credentials and quirks in a file, for `load` in another process."""
        kept = (list(self.accounts.values()), self.credentials, self.quirks)
        path.write_bytes(pickle.dumps(kept))

    @classmethod
    def load(cls, path: Path, *, control_token: str | None = None) -> MailServer:
        """Make a server of what `save` kept."""
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
        session = Door(self, "session", serve_session)
        well_known = Door(self, "session", serve_well_known)
        download = Door(self, "download", serve_download)
        events = Door(self, "push", serve_events)
        return Starlette(
            routes=[
                Route("/.well-known/jmap", well_known, methods=["GET"]),
                Route("/session", session, methods=["GET"]),
                Route(API_PATH, Door(self, "api", serve_api), methods=["POST"]),
                Route("/jmap/download/{account}/{blob}/{name:path}", download, methods=["GET"]),
                Route("/jmap/eventsource", events, methods=["GET"]),
                Route("/control/{token}/{action}", Control(self)),
            ]
        )
