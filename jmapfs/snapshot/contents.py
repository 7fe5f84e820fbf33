"""Contents that have come for a snapshot and wait for their place in it, each in a file.

Files are numbered, since names are known only when the whole state is. The checksum is taken of
what came, before it was written; reading a file again can then tell whether it is that.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

import trio

from jmapfs.errors import storage_errors
from jmapfs.snapshot.journal import CONTENT, Journal, Kept
from jmapfs.snapshot.sharing import has_content
from jmapfs.snapshot.source import Wanted
from jmapfs.snapshot.writing import created, write_all

_PIECE_BYTES: Final = 1 << 20
_THREADS: Final = 4
_NANOSECONDS: Final = 1_000_000_000

_T = TypeVar("_T")


class Content(NamedTuple):
    """A content: `size` in bytes, the SHA-256, the number of its file."""

    size: int
    digest: bytes
    number: int


class Received(NamedTuple):
    """How much has come: blobs, and their bytes."""

    blobs: int
    bytes: int

    def __add__(self, other: object) -> Received:
        """Return both together."""
        if not isinstance(other, Received):
            return NotImplemented
        return Received(self.blobs + other.blobs, self.bytes + other.bytes)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class Contents:
    """The contents of one partial, by blob id; `received` is what has come from the source."""

    def __init__(self, directory: Path, journal: Journal) -> None:
        self.received = Received(0, 0)
        self._directory = directory
        self._journal = journal
        self._numbers = itertools.count(1)
        self._contents: dict[str, Content] = {}
        self._unchecked: dict[str, Content] = {}
        self._threads = trio.CapacityLimiter(_THREADS)
        (directory / CONTENT).mkdir(mode=0o700)

    def __len__(self) -> int:
        """Return how many contents wait for their place."""
        return len(self._contents)

    def find(self, blob_id: str) -> Content | None:
        """Return a content that waits here."""
        return self._contents.get(blob_id)

    def take(self, blob_id: str) -> Content | None:
        """Return a content, and forget it: its file is about to be moved."""
        return self._contents.pop(blob_id, None)

    def path(self, content: Content) -> Path:
        """Return where a content is."""
        return self._directory / _file(content.number)

    def move(self, moves: Sequence[tuple[str, Content, str]]) -> None:
        """Give contents (by blob id) other places, relative to the partial; raises OSError."""
        self._journal.add(
            Kept(blob_id, content.size, content.digest.hex(), file)
            for blob_id, content, file in moves
        )
        directory = os.fspath(self._directory)
        for _, content, file in moves:
            os.rename(f"{directory}/{_file(content.number)}", f"{directory}/{file}")  # noqa: PTH104

    def adopt(self, path: Path, kept: Kept) -> None:
        """Take over a file of another partial, if it is there, to be checked when it is wanted.

        A content that was moved is where one of its lines says. Raises OSError.
        """
        if kept.blob_id in self._unchecked or not _is_file(path):
            return
        content = Content(kept.size, bytes.fromhex(kept.sha256), next(self._numbers))
        self._journal.add([Kept(kept.blob_id, kept.size, kept.sha256, _file(content.number))])
        path.rename(self.path(content))
        self._unchecked[kept.blob_id] = content

    def check(self, blob_id: str) -> bool:
        """Tell whether a content that was taken over is here, and whole; it is read."""
        content = self._unchecked.pop(blob_id, None)
        if content is None:
            return False
        path = self.path(content)
        if not has_content(str(path), content.size, content.digest.hex()):
            # The next run is not to take this for the one that comes in its place.
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return False
        self._contents[blob_id] = content
        return True

    async def receive(self, contents: Sequence[tuple[Wanted, bytes]]) -> None:
        """Keep contents, in a worker thread.

        Raises:
            StorageError: they cannot be written.
        """
        kept = await self._in_thread(partial(self._write_all, contents))
        self._note(kept)

    async def receive_stream(self, wanted: Wanted, chunks: AsyncIterator[bytes]) -> None:
        """Keep a content that comes chunk by chunk; of one that breaks off, nothing is kept."""
        number = next(self._numbers)
        descriptor = await self._in_thread(partial(self._create, number))
        digest = hashlib.sha256()
        size = 0
        try:
            piece = bytearray()
            async for chunk in chunks:
                piece += chunk
                if len(piece) >= _PIECE_BYTES:
                    size += len(piece)
                    await self._in_thread(partial(_append, descriptor, digest, bytes(piece)))
                    piece.clear()
            size += len(piece)
            await self._in_thread(partial(_append, descriptor, digest, bytes(piece)))
            await self._in_thread(partial(_date, descriptor, wanted.received_at))
        finally:
            os.close(descriptor)
        content = Content(size, digest.digest(), number)
        line = Kept(wanted.blob_id, size, content.digest.hex(), _file(number))
        await self._in_thread(partial(self._journal.add, [line]))
        self._note({wanted.blob_id: content})

    def _note(self, kept: dict[str, Content]) -> None:
        self._contents.update(kept)
        size = sum(content.size for content in kept.values())
        self.received += Received(len(kept), size)

    def _write_all(self, contents: Sequence[tuple[Wanted, bytes]]) -> dict[str, Content]:
        kept = {}
        lines = []
        for wanted, data in contents:
            digest = hashlib.sha256(data)
            content = Content(len(data), digest.digest(), next(self._numbers))
            descriptor = self._create(content.number)
            try:
                write_all(descriptor, data)
                _date(descriptor, wanted.received_at)
            finally:
                os.close(descriptor)
            kept[wanted.blob_id] = content
            lines.append(
                Kept(wanted.blob_id, content.size, digest.hexdigest(), _file(content.number))
            )
        self._journal.add(lines)
        return kept

    def _create(self, number: int) -> int:
        return created(f"{self._directory}/{_file(number)}")

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        with storage_errors(self._directory.parent):
            return await trio.to_thread.run_sync(work, limiter=self._threads)


def _file(number: int) -> str:
    return f"{CONTENT}/{number}"


def _append(descriptor: int, digest: _Hash, piece: bytes) -> None:
    digest.update(piece)
    write_all(descriptor, piece)


def _date(descriptor: int, received_at: int) -> None:
    # Before 1970 it is 1970, as in a mount: not every file system has other times.
    when = max(received_at, 0) * _NANOSECONDS
    os.utime(descriptor, ns=(when, when))


def _is_file(path: Path) -> bool:
    # Also where a damaged journal has a name that is too long for any file.
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
