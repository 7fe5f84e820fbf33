"""A snapshot that is being made: a directory with another name, until it is whole.

    DEST/.partial-2026-11-22T010203Z/
      journal.jsonl     which contents have come
      content/          contents that wait for their place
      snapshot/         what will be a snapshot, in one rename

What an interrupted run leaves is taken over by the next one. Each content is read and compared with
its checksum before it is used: a crash of the machine may have left anything.

The journal of a snapshot that is being made: which contents have come, and where they are.

A line is written before the file that it speaks of is moved, and nothing here is synced: what a
journal says is a claim, to be checked by reading the file, and what it does not say is lost and
fetched again. So it may end anywhere.

Contents that have come for a snapshot and wait for their place in it, each in a file.

Files are numbered, since names are known only when the whole state is. The checksum is taken of
what came, before it was written; reading a file again can then tell whether it is that.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Protocol, Self, TypeVar

import msgspec
import trio

from jmapfs.errors import UNDECODABLE, storage_errors
from jmapfs.snapshot.files import created, sync_directory, write_all
from jmapfs.snapshot.links import has_content
from jmapfs.snapshot.manifest import MAIL, Origin, is_mail_file
from jmapfs.snapshot.remove import remove_partial
from jmapfs.snapshot.repository import PARTIAL, Repository
from jmapfs.snapshot.source import BlobRequest, BlobTotals

JOURNAL: Final = "journal.jsonl"
CONTENT: Final = "content"
TREE: Final = "snapshot"

_MODE: Final = 0o600


class _Head(msgspec.Struct, frozen=True):
    origin: Origin


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A content that has come: `size` in bytes, its SHA-256, and its file within the partial."""

    blob_id: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    file: str


class Journal:
    """Appends to the journal of a partial, within `with`; raises OSError."""

    def __init__(self, partial: Path, origin: Origin) -> None:
        self._descriptor = created(partial / JOURNAL, _MODE, append=True)
        try:
            write_all(self._descriptor, msgspec.json.encode(_Head(origin)) + b"\n")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, contents: Iterable[Kept]) -> None:
        """Note contents, from any thread."""
        # A short write would leave half a line in the middle of others.
        write_all(self._descriptor, b"".join(msgspec.json.encode(one) + b"\n" for one in contents))

    def close(self) -> None:
        """Write no more."""
        os.close(self._descriptor)


def read_origin(partial: Path) -> Origin | None:
    """Return whose mail a partial is of; None where it does not come to saying so."""
    try:
        with (partial / JOURNAL).open("rb") as file:
            return msgspec.json.decode(file.readline(), type=_Head).origin
    except (OSError, *UNDECODABLE):
        return None


def read_journal(partial: Path) -> Iterator[Kept]:
    """Yield what a partial says it has; a content that was moved has several lines, in order."""
    decoder = msgspec.json.Decoder(Kept)
    try:
        with (partial / JOURNAL).open("rb") as file:
            file.readline()
            for line in file:
                try:
                    kept = decoder.decode(line)
                except UNDECODABLE:
                    # The end, or what a crash left of a line: the others are whole.
                    continue
                if _is_within(kept.file):
                    yield kept
    except OSError:
        return


def _is_within(file: str) -> bool:
    """Tell whether a path is one that a partial gives: others are not for jmapfs to move."""
    place, _, rest = file.partition("/")
    if place == CONTENT:
        return rest.isascii() and rest.isdecimal()
    return place == TREE and is_mail_file(rest)


_PIECE_BYTES: Final = 1 << 20
_THREADS: Final = 4
_NANOSECONDS: Final = 1_000_000_000

_T = TypeVar("_T")


class StagedContent(NamedTuple):
    """A content: `size` in bytes, the SHA-256, the number of its file."""

    size: int
    digest: bytes
    number: int


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class StagedContents:
    """The contents of one partial, by blob id; `received` is what has come from the source."""

    def __init__(self, directory: Path, journal: Journal) -> None:
        self.received = BlobTotals(0, 0)
        self._directory = directory
        self._journal = journal
        self._numbers = itertools.count(1)
        self._contents: dict[str, StagedContent] = {}
        self._unchecked: dict[str, StagedContent] = {}
        self._threads = trio.CapacityLimiter(_THREADS)
        (directory / CONTENT).mkdir(mode=0o700)

    def __len__(self) -> int:
        """Return how many contents wait for their place."""
        return len(self._contents)

    def find(self, blob_id: str) -> StagedContent | None:
        """Return a content that waits here."""
        return self._contents.get(blob_id)

    def take(self, blob_id: str) -> StagedContent | None:
        """Return a content, and forget it: its file is about to be moved."""
        return self._contents.pop(blob_id, None)

    def path(self, content: StagedContent) -> Path:
        """Return where a content is."""
        return self._directory / _file(content.number)

    def move(self, moves: Sequence[tuple[str, StagedContent, str]]) -> None:
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
        content = StagedContent(kept.size, bytes.fromhex(kept.sha256), next(self._numbers))
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

    async def write(self, contents: Sequence[tuple[BlobRequest, bytes]]) -> None:
        """Keep contents, in a worker thread.

        Raises:
            StorageError: they cannot be written.
        """
        kept = await self._in_thread(partial(self._write_all, contents))
        self._note(kept)

    async def write_stream(self, wanted: BlobRequest, chunks: AsyncIterator[bytes]) -> None:
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
        content = StagedContent(size, digest.digest(), number)
        line = Kept(wanted.blob_id, size, content.digest.hex(), _file(number))
        await self._in_thread(partial(self._journal.add, [line]))
        self._note({wanted.blob_id: content})

    def _note(self, kept: dict[str, StagedContent]) -> None:
        self._contents.update(kept)
        size = sum(content.size for content in kept.values())
        self.received += BlobTotals(len(kept), size)

    def _write_all(self, contents: Sequence[tuple[BlobRequest, bytes]]) -> dict[str, StagedContent]:
        kept = {}
        lines = []
        for wanted, data in contents:
            digest = hashlib.sha256(data)
            content = StagedContent(len(data), digest.digest(), next(self._numbers))
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


_PARTIAL_MODE: Final = 0o700


class Staging:
    """The directory of a snapshot that is being made, within its context."""

    def __init__(self, destination: Repository, journal: Journal, path: Path) -> None:
        self.path = path
        self.tree.mkdir(mode=_PARTIAL_MODE)
        self.contents = StagedContents(path, journal)
        self._destination = destination

    @property
    def tree(self) -> Path:
        """What will be the snapshot."""
        return self.path / TREE

    @staticmethod
    def tree_file(file: str) -> str:
        """Return the path of a file of the snapshot, relative to the partial."""
        return f"{TREE}/{file}"

    def make_directories(self, paths: Sequence[str]) -> None:
        """Make the directories of mailboxes, given by their paths; raises OSError."""
        root = self.tree / MAIL
        root.mkdir(mode=_PARTIAL_MODE)
        for path in paths:
            directory = root / path
            # A part of a tree begins below directories that are no mailboxes of it.
            for parent in reversed(directory.relative_to(root).parents[:-1]):
                (root / parent).mkdir(mode=_PARTIAL_MODE, exist_ok=True)
            directory.mkdir(mode=_PARTIAL_MODE, exist_ok=True)

    def publish(self, date: str) -> Path:
        """Give the snapshot its name, for good; raises OSError."""
        path = self._destination.path / date
        self.tree.rename(path)
        sync_directory(self._destination.path)
        return path


@contextlib.contextmanager
def begin_staging(destination: Repository, date: str, origin: Origin) -> Iterator[Staging]:
    """Make the directory of a snapshot that is begun now; it stays when the context ends.

    Raises:
        StorageError: it cannot be made.
    """
    path = destination.path / f"{PARTIAL}{date}"
    # One of the same second, by a run that just failed, or whose clock was ahead.
    number = 1
    while path.exists():
        number += 1
        path = destination.path / f"{PARTIAL}{date}-{number}"
    with storage_errors(path):
        path.mkdir(mode=_PARTIAL_MODE)
        journal = Journal(path, origin)
    with journal:
        with storage_errors(path):
            partial = Staging(destination, journal, path)
        yield partial


class InterruptedRuns:
    """What earlier runs began and did not end; `partials` is where it is."""

    def __init__(self, destination: Repository) -> None:
        self.partials = destination.partials()

    def origins(self) -> list[Origin]:
        """Return whose mail it is."""
        origins = map(read_origin, self.partials)
        return [origin for origin in origins if origin is not None]

    def take_over(self, contents: StagedContents) -> None:
        """Move all contents to where they are wanted now, and remove the rest; raises OSError."""
        for path in self.partials:
            for kept in read_journal(path):
                contents.adopt(path / kept.file, kept)
            remove_partial(path)
