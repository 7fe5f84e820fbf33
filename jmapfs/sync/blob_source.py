"""Downloads of an account's blobs, by content key.

The index connects the keys with the account: it knows the epoch of the keys, and which emails have
a blob. The connection is the client of a mount's follower, or a client that a snapshot has opened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import cached_property

import trio

from jmapfs.backoff import Pace
from jmapfs.blob_keys import split_content_key
from jmapfs.deadline import Deadline
from jmapfs.errors import (
    AuthenticationError,
    BlobNotFoundError,
    ServerError,
    StorageError,
    UnreachableError,
)
from jmapfs.index.database import IndexDatabase
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState, may_be_same_time
from jmapfs.jmap.batches import BlobGetLimits
from jmapfs.jmap.blob_get import BlobDigest, RangeStream
from jmapfs.jmap.blobs import BlobStream
from jmapfs.jmap.client import Client
from jmapfs.jmap.emails import EmailValues
from jmapfs.sqlite import sqlite_errors

# An email that is asked about may just have been deleted. So a few others with the same blob are
# asked about as well.
_EMAILS_OF_BLOB = 8
# Programs may read what fails in a loop. A round for each read would not help.
_FIRST_PAUSE = 1.0
_LONGEST_WAKE_PAUSE = 60.0
# The account is listed again after each report.
_LONGEST_RESET_PAUSE = 3600.0


class _Paced:
    """Calls a function, unless it was called a moment ago."""

    def __init__(self, function: Callable[[], None], longest: float) -> None:
        self._function = function
        self._pace = Pace(_FIRST_PAUSE, longest)

    def __call__(self) -> None:
        if trio.current_time() >= self._pace.next_at:
            self._pace.record()
            self._function()


@contextmanager
def open_blob_source(
    database: IndexDatabase,
    client: Callable[[], Client],
    *,
    describe: Callable[[IndexReader, str], str],
    wake: Callable[[], None] = lambda: None,
    report_reset: Callable[[], None] = lambda: None,
    lasting: bool = False,
) -> Iterator[AccountBlobSource]:
    """Yield the blobs of an account.

    `client` returns the client, or raises UnreachableError. `describe` returns a name for a blob id
    in messages. `wake` is called if the server may be unreachable, `report_reset` if an id stands
    for another email than in the index. If `lasting`, the readers follow a new index after damage.
    """
    open_index: Callable[[], IndexReader] = database.lasting_reader if lasting else database.reader
    with ExitStack() as stack:

        def open_reader() -> IndexReader:
            return stack.enter_context(open_index())

        yield AccountBlobSource(open_reader, client, describe, wake, report_reset)


class AccountBlobSource:
    """Downloads blobs; without a client, downloads fail at once. For tasks of the event loop.

    The index is opened when it is first needed: before a first listing there is no index.
    """

    def __init__(
        self,
        open_reader: Callable[[], IndexReader],
        client: Callable[[], Client],
        describe: Callable[[IndexReader, str], str],
        wake: Callable[[], None],
        report_reset: Callable[[], None],
    ) -> None:
        self._open_reader = open_reader
        self._client = client
        self._describe = describe
        self._wake = _Paced(wake, _LONGEST_WAKE_PAUSE)
        self._report_reset = _Paced(report_reset, _LONGEST_RESET_PAUSE)
        self._email_thread = trio.CapacityLimiter(1)
        self._not_found: set[str] = set()
        self._version = -1
        self._known_state = AccountState()

    @property
    def blob_ids_are_sha1(self) -> bool:
        """Whether the blob id can be used to check the content."""
        return self._client().blob_ids_are_sha1

    @property
    def batch_limits(self) -> BlobGetLimits | None:
        """The limits of `download_batch`; None if blobs can only be downloaded one by one."""
        try:
            return self._client().batch_limits
        except UnreachableError:
            return None

    @property
    def concurrency(self) -> int:
        """How many requests may run at the same time."""
        try:
            return self._client().concurrency
        except UnreachableError:
            return 1

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: Deadline
    ) -> dict[str, bytes]:
        """Request blobs together, and return the contents that arrive whole."""
        keys = {self._blob_id(key): key for key, _ in blobs}
        wanted = [(split_content_key(key)[1], size) for key, size in blobs]
        with self._checking_connection():
            contents = await self._client().download_batch(wanted, deadline=deadline)
        return {keys[blob_id]: data for blob_id, data in contents.items()}

    @asynccontextmanager
    async def stream_blob(
        self, key: str, *, fresh: bool = False, deadline: Deadline
    ) -> AsyncIterator[BlobStream]:
        """Open a blob for reading from the download URL."""
        blob_id = self._blob_id(key)
        with self._checking_connection(), self._noting_not_found(blob_id):
            client = self._client()
            async with client.stream_blob(blob_id, fresh=fresh, deadline=deadline) as stream:
                yield stream

    @asynccontextmanager
    async def stream_ranges(
        self, key: str, size: int, *, deadline: Deadline
    ) -> AsyncIterator[RangeStream]:
        """Open a blob for reading piece by piece, by Blob/get."""
        blob_id = self._blob_id(key)
        with self._checking_connection(), self._noting_not_found(blob_id):
            async with self._client().stream_ranges(blob_id, size, deadline=deadline) as stream:
                yield stream

    async def take_suspects(self) -> list[str]:
        """Return the ids of the emails that were not what the index says, since the last call.

        The server did not find their blobs, or states other immutable properties.
        """
        blob_ids, self._not_found = self._not_found, set()
        if not blob_ids:
            return []
        emails = await trio.to_thread.run_sync(
            self._emails_of, list(blob_ids), limiter=self._email_thread, abandon_on_cancel=False
        )
        return [email_id for known in emails.values() for email_id, _ in known]

    async def stated(self, keys: Collection[str]) -> dict[str, EmailValues]:
        """Return what the server states now about the blobs that it still shows.

        A blob of an email is shown if the email has the same blob id and time as in the index.
        These values of an email never change (RFC 8621 §4.1.1). If they differ, the server was
        reset or restored.
        """
        state = self._state()
        current = {
            blob_id: key
            for key in keys
            for epoch, blob_id in [split_content_key(key)]
            if self._is_current(epoch, state)
        }
        emails = await trio.to_thread.run_sync(
            self._emails_of, list(current), limiter=self._email_thread, abandon_on_cancel=False
        )
        with self._checking_connection():
            values = await self._client().email_values(
                [email_id for known in emails.values() for email_id, _ in known]
            )
        stated: dict[str, EmailValues] = {}
        differ = False
        for blob_id, known in emails.items():
            for email_id, received_at in known:
                value = values.get(email_id)
                if value is None:
                    continue
                if value.blob_id == blob_id and may_be_same_time(value.received_at, received_at):
                    stated.setdefault(current[blob_id], value)
                else:
                    differ = True
                    self._not_found.add(blob_id)
        if differ:
            self._report_reset()
        # The follower may have found a reset while the server was asked.
        return stated if self._state().epoch == state.epoch else {}

    async def digests(self, keys: Collection[str]) -> dict[str, BlobDigest]:
        """Return the digests of blobs that the server offers."""
        client = self._client()
        if not client.digest_algorithms:
            return {}
        current = {self._blob_id(key): key for key in keys}
        with self._checking_connection():
            digests = await client.blob_digests(current)
        return {current[blob_id]: digest for blob_id, digest in digests.items()}

    def describe(self, key: str) -> str:
        """Return a name for a blob in messages: the path of a file and the id of its email."""
        try:
            return self._describe(self._reader, split_content_key(key)[1])
        except StorageError:
            # A message about a failed download must not cause another error.
            return "a mail"

    @cached_property
    def _reader(self) -> IndexReader:
        return self._open_reader()

    @cached_property
    def _email_reader(self) -> IndexReader:
        # Only one thread at a time may use a reader, so worker threads have a reader of their own.
        return self._open_reader()

    def _blob_id(self, key: str) -> str:
        """Return the blob id of a key. Raises ServerError if its epoch has ended."""
        epoch, blob_id = split_content_key(key)
        # A SHA-1 proves the content in every epoch.
        if epoch or not self._client().blob_ids_are_sha1:
            state = self._state()
            if state.stale is not None and state.stale.reset:
                raise ServerError(
                    "the server was reset and uses ids again, so only cached mail can be read:"
                    " jmapfs sync --accept-deletions shows the mail that it has now"
                )
            if not self._is_current(epoch, state):
                raise ServerError("the server was reset after this mail was listed")
        return blob_id

    @staticmethod
    def _is_current(epoch: str, state: AccountState) -> bool:
        return epoch == state.epoch and not (state.stale is not None and state.stale.reset)

    def _state(self) -> AccountState:
        with sqlite_errors("read the index"):
            version = self._reader.version()
            if version != self._version:
                self._known_state = self._reader.state()
                self._version = version
        return self._known_state

    def _emails_of(self, blob_ids: Sequence[str]) -> dict[str, list[tuple[str, int]]]:
        with sqlite_errors("read the index"):
            return {
                blob_id: self._email_reader.emails_of_blob(blob_id, _EMAILS_OF_BLOB)
                for blob_id in blob_ids
            }

    @contextmanager
    def _noting_not_found(self, blob_id: str) -> Iterator[None]:
        try:
            yield
        except BlobNotFoundError:
            self._not_found.add(blob_id)
            raise
        # Perhaps another route has not found it.
        self._not_found.discard(blob_id)

    @contextmanager
    def _checking_connection(self) -> Iterator[None]:
        try:
            yield
        except (UnreachableError, AuthenticationError):
            # A round finds out whether only this download failed.
            self._wake()
            raise
