"""The interface between the snapshot engine and the sources that it copies mail from.

A `Source` is an account, or a part of a mounted tree, at one state. It lists its emails in order,
and it downloads the contents that the engine requests. There are two implementations:
`from_account` (index and server) and `from_mount` (files and control socket of a mount).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from jmapfs.blob_keys import content_key
from jmapfs.errors import JmapfsError
from jmapfs.index.rows import EmailSlice
from jmapfs.snapshot.files import Links
from jmapfs.snapshot.manifest import Origin
from jmapfs.snapshot.online import ContentCheck
from jmapfs.tree.export import ExportedMailbox
from jmapfs.tree.status_file import Lacking, ShortfallStatus


class SnapshotReport(Protocol):
    """Receives the progress of a snapshot. All methods are called in the event loop."""

    def listed(self, listed: int, total: int | None) -> None:
        """Report how many emails are listed, and the total if it is known."""

    def copied(self, mails: int, total: int, size: int) -> None:
        """Report the mails in the snapshot, their approximate total, and the bytes downloaded."""

    def syncing(self) -> None:
        """Report that all files are written, and that syncing them to the disk begins."""

    def published(self, path: Path) -> None:
        """Report that the snapshot exists under its date. Later errors do not remove it."""

    def notice(self, text: str) -> None:
        """Report something that the user should know."""

    def waiting(self, text: str) -> None:
        """Report that the server asks to wait."""


class SnapshotSummary(msgspec.Struct, frozen=True):
    """A finished snapshot, as `jmapfs snapshot --json` prints it.

    `bytes` is the size of the content, each blob counted once. `fetched` blobs with `fetched_bytes`
    came from the source in this run. `cached` blobs came from the cache of a mount, and
    `taken_over` blobs from interrupted runs. `new` and `gone` count blobs compared with the
    snapshot `previous`. `replaced` blobs have another content in that snapshot than the server
    states now. `missing` mails are not in the snapshot, because they cannot be downloaded. With a
    `shortfall`, the server counts more mails than it lists.
    `attempts` is the number of account states that were tried: mail may disappear before it is
    downloaded.
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
    replaced: int
    missing: int
    shortfall: ShortfallStatus | None
    links: Links
    attempts: int
    seconds: float


class BlobRequest(NamedTuple):
    """A blob to download.

    `size` is in bytes, as the source states it. `received_at` is in seconds since 1970 (UTC).
    `file` is one path of the mail, relative to the root of the source's tree. `email_id` is the id
    of the email, empty if it is not known. `epoch` is that of the blob id; see `blob_keys`.
    """

    blob_id: str
    size: int
    received_at: int
    file: str
    email_id: str = ""
    epoch: str = ""

    @property
    def content_key(self) -> str:
        """The key of the content in caches and downloads."""
        return content_key(self.epoch, self.blob_id)


class BlobTotals(NamedTuple):
    """A number of blobs, and their bytes."""

    blobs: int
    bytes: int

    def __add__(self, other: object) -> BlobTotals:
        """Return the sums."""
        if not isinstance(other, BlobTotals):
            return NotImplemented
        return BlobTotals(self.blobs + other.blobs, self.bytes + other.bytes)


class Sink(Protocol):
    """Stores downloaded contents."""

    async def write(self, contents: Sequence[tuple[BlobRequest, bytes]]) -> None:
        """Store contents; raises StorageError."""

    async def write_stream(self, request: BlobRequest, chunks: AsyncIterator[bytes]) -> None:
        """Store a content in chunks of about 1 MiB. If `chunks` raises, nothing is stored."""


class Source(Protocol):
    """An account, or a part of it, at one state.

    `origin` is the account that the mail belongs to, `email_state` the state of its emails (RFC
    8620 §1.6.3). `epoch` is that of the ids; see `blob_keys`. `blob_ids_are_sha1` tells whether the
    blob ids contain the SHA-1 of the content. `mailboxes` are in the order of their paths.
    `mail_count` is approximate. `concurrency` is the number of batches to download at a time.
    `check` compares contents with the server; None if the source is no account. `lacking` is what
    the source lacks although the account has it, as far as it is known: `compared_at` is when the
    numbers of emails were last compared with those of the server, 0 if they never were.
    """

    origin: Origin
    email_state: str
    epoch: str
    blob_ids_are_sha1: bool
    mailboxes: list[ExportedMailbox]
    mail_count: int
    concurrency: int
    check: ContentCheck | None
    lacking: Lacking
    compared_at: float

    @property
    def cached(self) -> BlobTotals:
        """Counts the blobs that did not come from the server, as far as the source knows."""

    async def emails_after(self, position: int) -> EmailSlice:
        """Return the next emails after a position, in order."""

    def batches(self, requests: Sequence[BlobRequest]) -> Iterable[Sequence[BlobRequest]]:
        """Divide requests into batches that are best downloaded together."""

    async def download(
        self, batch: Sequence[BlobRequest], sink: Sink, *, from_server: bool = False
    ) -> Mapping[str, JmapfsError]:
        """Download contents into a sink. Return the blobs that failed, each with its error.

        If `from_server`, contents in the disk cache are wrong: they are removed, and downloaded
        again. A mount has no such contents, because `check` is None.

        Raises JmapfsError for a failure that is not caused by a single blob.
        """

    async def still_frozen(self) -> bool:
        """Return whether everything that was downloaded belongs to one state."""


class EarlySink(Protocol):
    """Accepts contents before the state to copy is known. Most will belong to that state."""

    async def prepare(self, origin: Origin, epoch: str, *, blob_ids_are_sha1: bool) -> Sink:
        """Begin the snapshot of this account. Return the sink for the contents of this epoch.

        Raises ConfigError if the repository belongs to another account, and StorageError if the
        repository cannot be written.
        """

    async def missing(self, candidates: Sequence[BlobRequest]) -> list[BlobRequest]:
        """Return the candidates that must be downloaded. No candidate is returned twice."""


class SourceOpener(Protocol):
    """Opens a source for each attempt, at the current state of the account."""

    def open(self, early: EarlySink) -> AbstractAsyncContextManager[Source]:
        """Return a context in which the source is open and its state does not change.

        The source may write contents to `early` before the context is entered.
        """
