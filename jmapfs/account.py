"""Downloads of an account's blobs, over whatever connection there is at the time.

Connections come and go with the server's reach; what counts them all, and what fails at once where
there is none, is here.

Which account is meant, once the command line and the configuration are read.

Where the index and the blobs of an account are kept.

Which accounts a user can see: those with mail in them.

Who leads: of the processes that mount an account, the one that writes its index.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from jmapfs.errors import AuthenticationError, BusyError, StorageError, UnreachableError
from jmapfs.index.database import IndexDatabase
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.batches import BatchLimits
from jmapfs.jmap.blobs import BlobStream
from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.credentials import BasicCredentials, Credentials
from jmapfs.jmap.http import Traffic
from jmapfs.jmap.session import Session, SessionAccount
from jmapfs.locking import ProcessLock
from jmapfs.names import key, safe_text
from jmapfs.sync.follower import AccountFollower


@dataclass(frozen=True, slots=True)
class AccountSource:
    """An account, and how to get at it.

    `label` is what the user calls it; `location` a session URL, a host or a mail address;
    `account` the id or name of one of the session's accounts, or None for the primary one.
    """

    label: str
    location: str
    credentials: Credentials
    account: str | None = None


def account_directory(cache_root: Path, source: AccountSource) -> Path:
    """Return the directory of one account's index and blobs.

    It is named after what the user asked for, and so is found without asking the server.
    """
    credentials = source.credentials
    user = credentials.username if isinstance(credentials, BasicCredentials) else ""
    identity = "\0".join((source.location, user, source.account or ""))
    name = safe_text(source.location.partition("://")[2] or source.location, limit=40)
    return cache_root / f"{name}_{key(identity)}"


_MAIL: Final = "urn:ietf:params:jmap:mail"


async def mail_accounts(source: AccountSource) -> list[SessionAccount]:
    """Return the accounts with mail that the user can see, the primary one first.

    Raises:
        JmapfsError: the server cannot be asked.
    """
    async with connect(source.location, source.credentials) as client:
        return mail_accounts_of(client.session)


def mail_accounts_of(session: Session) -> list[SessionAccount]:
    """Return the accounts with mail in a session, the primary one first."""
    primary = session.primary_accounts.get(_MAIL)
    # `accountCapabilities` can be null; only an account that has some, and not this, has no mail.
    having = [
        account
        for account in session.accounts.values()
        if _MAIL in account.capabilities or not account.capabilities
    ]
    return sorted(having, key=lambda account: (account.id != primary, account.name, account.id))


_log = logging.getLogger(__name__)


class WriterLease:
    """The right to write the index: taken when it is free, kept to the end."""

    def __init__(self, directory: Path, database: IndexDatabase) -> None:
        self._directory = directory
        self._database = database
        self._stack = contextlib.ExitStack()
        self._writer: IndexWriter | None = None
        self._in_use = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def try_now(self) -> BusyError | None:
        """Take it if it is free; otherwise return who has it."""
        if self._writer is not None:
            return None
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(
                    ProcessLock(
                        self._directory / "lock",
                        f"this account ({self._directory})",
                        parents=True,
                    )
                )
            except BusyError as error:
                self._in_use = True
                return error
            self._database.prepare(in_use=self._in_use)
            self._writer = stack.enter_context(self._database.writer())
            self._stack.push(stack.pop_all())
        return None

    def take(self) -> IndexWriter | None:
        """Return the writer, if the right is ours or free."""
        try:
            self.try_now()
        except StorageError as error:
            _log.error("the index cannot be taken over: %s", error)
        return self._writer


class TotalTraffic:
    """What all connections to a server have sent and received, the closed ones included."""

    def __init__(self) -> None:
        self._closed = Traffic()
        self._open = Traffic()

    def total(self) -> Traffic:
        """Return the sums."""
        return Traffic(
            requests=self._closed.requests + self._open.requests,
            blobs=self._closed.blobs + self._open.blobs,
            bytes=self._closed.bytes + self._open.bytes,
        )

    def begin(self, traffic: Traffic) -> None:
        """Count a new connection's traffic from now on."""
        self._closed, self._open = self.total(), traffic


class AccountBlobSource:
    """Downloads from whatever connection there is; fails at once where there is none."""

    def __init__(self, keeper: AccountFollower) -> None:
        self._keeper = keeper

    @property
    def blob_ids_are_sha1(self) -> bool:
        """Whether content can be checked by its id."""
        return self._client().blob_ids_are_sha1

    @property
    def batch_limits(self) -> BatchLimits | None:
        """What `download_batch` takes; None where blobs can only be had one by one."""
        client = self._keeper.client
        return None if client is None else client.batch_limits

    @property
    def concurrency(self) -> int:
        """How many requests may be under way at once."""
        client = self._keeper.client
        return 1 if client is None else client.concurrency

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: float
    ) -> dict[str, bytes]:
        """Return those of the blobs that one request could bring whole."""
        with self._watched():
            return await self._client().download_batch(blobs, deadline=deadline)

    async def download_blob(
        self, blob_id: str, *, size_hint: int | None = None, deadline: float
    ) -> bytes:
        """Return the content of a blob."""
        with self._watched():
            return await self._client().download_blob(
                blob_id, size_hint=size_hint, deadline=deadline
            )

    @contextlib.asynccontextmanager
    async def stream_blob(self, blob_id: str, *, deadline: float) -> AsyncIterator[BlobStream]:
        """Return the content of a blob chunk by chunk."""
        with self._watched():
            async with self._client().stream_blob(blob_id, deadline=deadline) as stream:
                yield stream

    def _client(self) -> Client:
        if self._keeper.client is None:
            raise UnreachableError(
                f"offline: {self._keeper.connection.error or 'not connected yet'}"
            )
        return self._keeper.client

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (UnreachableError, AuthenticationError):
            if self._keeper.client is not None:
                # Is it this download, or is the server gone? The keeper finds out.
                self._keeper.wake()
            raise
