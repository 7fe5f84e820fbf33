"""Where a snapshot comes from: what the engine asks of an account, or of a mounted tree.

A source is held at one state for as long as it is open. Mails come in order, each with its files;
the engine says whose content it wants, and the source brings that.

What taking a snapshot tells the one who asked for it, and what it comes to at the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from jmapfs.errors import JmapfsError
from jmapfs.index.rows import EmailSlice
from jmapfs.snapshot.manifest import Links, Origin
from jmapfs.tree.export import ExportedMailbox


class SnapshotReport(Protocol):
    """Takes what there is to say, in the event loop."""

    def listed(self, listed: int, total: int | None) -> None:
        """Say how many emails are listed, of how many where that is known."""
        ...

    def copied(self, mails: int, total: int, size: int) -> None:
        """Say how many mails are in the snapshot, of about how many, and the bytes fetched."""
        ...

    def finishing(self) -> None:
        """Say that everything is there, and is being brought to the disk."""
        ...

    def made(self, path: Path) -> None:
        """Say that the snapshot is there, whatever may come after that."""
        ...

    def notice(self, text: str) -> None:
        """Say something that the user should know."""
        ...


class SnapshotSummary(msgspec.Struct, frozen=True):
    """A snapshot that was taken.

    `bytes` is the content, each blob once; of it `fetched_bytes`, by `fetched` blobs, came from
    the source in this run, `cached` blobs from the cache of a mount, and `taken_over` blobs from
    runs that were interrupted. `new` and `gone`
    count blobs in comparison to the snapshot `previous`. `attempts` is how many states of the
    account were begun with: mail may vanish before it is fetched.
    """

    path: str
    date: str
    email_state: str
    mails: int
    files: int
    bytes: int
    previous: str | None
    new: int
    gone: int
    fetched: int
    fetched_bytes: int
    cached: int
    taken_over: int
    links: Links
    attempts: int
    seconds: float


class BlobRequest(NamedTuple):
    """Content that is not at hand.

    `size` is in bytes, as far as the source knows; `received_at` in seconds since 1970; `file` a
    path of the mail from the root of the source's tree.
    """

    blob_id: str
    size: int
    received_at: int
    file: str


def batches_of(
    wanted: Iterable[BlobRequest], *, most: int, room: int, largest: int
) -> Iterator[Sequence[BlobRequest]]:
    """Divide what is wanted, in order: `most` to a batch, and `room` for bytes.

    What is larger than `largest` bytes is a batch by itself.
    """
    batch: list[BlobRequest] = []
    size = 0
    for one in wanted:
        if one.size > largest:
            yield [one]
            continue
        if batch and (len(batch) == most or size + one.size > room):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.size
    if batch:
        yield batch


class Cached(NamedTuple):
    """Contents that were in a cache: how many blobs, with how many bytes."""

    blobs: int
    bytes: int


class Sink(Protocol):
    """Takes what a source brings."""

    async def receive(self, contents: Sequence[tuple[BlobRequest, bytes]]) -> None:
        """Keep contents; raises StorageError where they cannot be kept."""
        ...

    async def receive_stream(self, wanted: BlobRequest, chunks: AsyncIterator[bytes]) -> None:
        """Keep a content that comes chunk by chunk; an error in `chunks` leaves nothing of it."""
        ...


class Source(Protocol):
    """An account, or a part of it, at one state.

    `mails` is how many it has, about; `tasks` how many batches it brings at a time.
    """

    @property
    def origin(self) -> Origin:
        """Whose mail it is."""
        ...

    @property
    def email_state(self) -> str:
        """Which state that is (RFC 8620 §1.6.3)."""
        ...

    @property
    def mailboxes(self) -> Sequence[ExportedMailbox]:
        """The mailboxes, in the order of their paths."""
        ...

    @property
    def mails(self) -> int:
        """How many mails there are, about."""
        ...

    @property
    def tasks(self) -> int:
        """How many batches are brought at a time."""
        ...

    @property
    def cached(self) -> Cached:
        """What of all that was brought needed no server, as far as that is known."""
        ...

    async def after(self, position: int) -> EmailSlice:
        """Return some mails from a position on, in order."""
        ...

    def batches(self, wanted: Sequence[BlobRequest]) -> Iterable[Sequence[BlobRequest]]:
        """Divide what is wanted into what is best brought together."""
        ...

    async def bring(
        self, batch: Sequence[BlobRequest], receiver: Sink
    ) -> Mapping[str, JmapfsError]:
        """Bring contents; return why some of them, by blob id, cannot be had.

        Raises:
            JmapfsError: something is in the way that has nothing to do with them.
        """
        ...

    async def still_held(self) -> bool:
        """Tell whether all that was brought is of the one state."""
        ...


class Ahead(Protocol):
    """Takes contents before it is known which state they are of: most will be of that as well."""

    async def prepare(self, origin: Origin) -> Sink:
        """Begin, once it is known whose mail it is; return what takes contents.

        Raises:
            ConfigError: the snapshots here are of another account.
            StorageError: the destination cannot be written.
        """
        ...

    async def unknown(self, candidates: Sequence[BlobRequest]) -> list[BlobRequest]:
        """Return what is not at hand; it counts as ordered."""
        ...


class SourceOpener(Protocol):
    """Opens a source at the state that the account has now; again for each attempt."""

    def open(self, ahead: Ahead) -> AbstractAsyncContextManager[Source]:
        """Return a context in which the source is open, and its state held.

        On the way to that state contents may be brought to `ahead`.
        """
        ...
