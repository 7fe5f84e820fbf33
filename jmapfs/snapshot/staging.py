"""The directory in which a snapshot is made, and the directories of interrupted runs.

    DEST/.partial-2026-11-22T010203Z/
      journal.jsonl     the contents that were stored, and where
      content/          contents that wait for their place in the tree, in numbered files
      missing.jsonl     the mails that cannot be downloaded, if there are any
      snapshot/         the tree; one rename publishes it

The line of a file is written to the journal before the file is moved. Nothing here is synced. So
the journal of an interrupted run may end anywhere, and may have wrong lines. The next run moves the
files into its own directory, and compares each with its checksum before it is used: after a crash
of the machine a file may contain anything. Contents without a valid line are downloaded again. So
are contents of another epoch, because their blob ids may stand for other mail now.

Files are numbered, because their names are known only when the whole state is known. The checksum
is computed from the downloaded bytes, before they are written. So a second read verifies the file.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec
import trio

from jmapfs.errors import UNDECODABLE, storage_errors
from jmapfs.private_files import create_file, make_directory, open_reading, require_private
from jmapfs.snapshot.base import SharedFile
from jmapfs.snapshot.files import has_content, sync_directory, write_all
from jmapfs.snapshot.manifest import MAIL, MISSING, Origin, is_mail_file
from jmapfs.snapshot.missing import MissingMails
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import BlobRequest, BlobTotals

_log = logging.getLogger(__name__)

_JOURNAL: Final = "journal.jsonl"
_CONTENT: Final = "content"
_TREE: Final = "snapshot"

_JOURNAL_MODE: Final = 0o600
_THREADS: Final = 4
_NANOSECONDS: Final = 1_000_000_000

_T = TypeVar("_T")


class _Head(msgspec.Struct, frozen=True):
    """The first line of a journal. Earlier versions did not write the epoch."""

    origin: Origin
    epoch: str | None = None


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    """A line of a journal: the blob id, size in bytes, checksum and file of a content.

    `wanted` is the size that was requested. Earlier versions did not write it.
    """

    blob_id: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    file: str
    wanted: int | None = None


class StagedContent(NamedTuple):
    """A content without a place yet: its size in bytes, its SHA-256 and the number of its file.

    `wanted` is the size that was requested. The size of confirmed content may differ from it.
    """

    size: int
    digest: bytes
    number: int
    wanted: int | None

    def has_size(self, size: int) -> bool:
        """Return whether this can be a content of this size."""
        return size in {self.size, self.wanted}

    def entry(self, blob_id: str, file: str) -> _Entry:
        """Return the line of the journal for this content in a file."""
        return _Entry(blob_id, self.size, self.digest.hex(), file, self.wanted)


class Staging(contextlib.AbstractContextManager["Staging"]):
    """The new directory `path` of a snapshot. The end of `with` does not delete the directory.

    A `Staging` is the `Sink` of the snapshot. `tree` will be the snapshot. `downloaded` counts what
    the source has written. `received` are the bytes that have arrived, also those of contents that
    are not whole. `len` is the number of contents without a place yet. All contents belong to one
    `epoch`. Raises StorageError if the directory cannot be created.
    """

    def __init__(
        self,
        repository: Repository,
        date: str,
        origin: Origin,
        epoch: str,
        *,
        blob_ids_are_sha1: bool,
    ) -> None:
        self.downloaded = BlobTotals(0, 0)
        self.received = 0
        self.epoch = epoch
        self.path = repository.new_partial(date)
        self.tree = self.path / _TREE
        self.missing = MissingMails(self.path)
        self._blob_ids_are_sha1 = blob_ids_are_sha1
        self._repository = repository
        self._root = os.fspath(self.path)
        self._numbers = itertools.count(1)
        self._contents: dict[str, StagedContent] = {}
        self._unverified: dict[str, StagedContent] = {}
        self._threads = trio.CapacityLimiter(_THREADS)
        with storage_errors(self.path):
            make_directory(self.path)
            self._journal = create_file(
                self.path / _JOURNAL, _JOURNAL_MODE, os.O_WRONLY | os.O_APPEND
            )
            try:
                write_all(self._journal, msgspec.json.encode(_Head(origin, epoch)) + b"\n")
                make_directory(self.tree)
                make_directory(self.path / _CONTENT)
            except BaseException:
                os.close(self._journal)
                raise

    def __exit__(self, *_: object) -> None:
        self.missing.__exit__()
        os.close(self._journal)

    def __len__(self) -> int:
        return len(self._contents)

    def has(self, blob_id: str, size: int) -> bool:
        """Return whether a content of this size is staged. Content of another size is dropped."""
        content = self._contents.get(blob_id)
        if content is None or content.has_size(size):
            return content is not None
        self.discard(blob_id)
        return False

    def file(self, blob_id: str) -> SharedFile | None:
        """Return the file of a staged content."""
        content = self._contents.get(blob_id)
        if content is None:
            return None
        path = f"{self._root}/{_file(content.number)}"
        return SharedFile(path, content.size, content.digest.hex())

    def discard(self, blob_id: str) -> bool:
        """Delete a staged content. Return whether there was one. Raises OSError."""
        content = self._contents.pop(blob_id, None)
        if content is not None:
            self._delete(content)
        return content is not None

    def accepts(self, epoch: str | None) -> bool:
        """Return whether contents of another run can be used. `epoch` is that of the run."""
        return self._blob_ids_are_sha1 or epoch == self.epoch

    def adopt(self, path: Path, entry: _Entry) -> None:
        """Move a file of an interrupted run here, if it exists. It is verified before it is used.

        If a content was moved, the journal has a line for each of its places, and only one line is
        still right. Raises OSError.
        """
        if entry.blob_id in self._unverified or not _is_file(path):
            return
        digest = bytes.fromhex(entry.sha256)
        content = StagedContent(entry.size, digest, next(self._numbers), entry.wanted)
        self._record([content.entry(entry.blob_id, _file(content.number))])
        path.rename(self.path / _file(content.number))
        self._unverified[entry.blob_id] = content

    def recover(self, blob_id: str, size: int) -> bool:
        """Verify an adopted content by reading it. Return whether it exists and is right."""
        content = self._unverified.pop(blob_id, None)
        if content is None:
            return False
        path = f"{self._root}/{_file(content.number)}"
        if not (content.has_size(size) and has_content(path, content.size, content.digest.hex())):
            self._delete(content)
            return False
        self._contents[blob_id] = content
        return True

    async def write(self, contents: Sequence[tuple[BlobRequest, bytes]]) -> None:
        """Store contents in a worker thread. Raises StorageError if they cannot be written."""
        self._add(await self._in_thread(partial(self._write_files, contents)))
        self.received += sum(len(data) for _, data in contents)

    async def write_stream(self, request: BlobRequest, chunks: AsyncIterator[bytes]) -> None:
        """Store a content chunk by chunk. If `chunks` raises, nothing is stored."""
        number = next(self._numbers)
        descriptor = await self._in_thread(partial(self._create, number))
        digest = hashlib.sha256()
        size = 0

        def append(chunk: bytes) -> None:
            digest.update(chunk)
            write_all(descriptor, chunk)

        try:
            async for chunk in chunks:
                size += len(chunk)
                self.received += len(chunk)
                await self._in_thread(partial(append, chunk))
            await self._in_thread(partial(_set_time, descriptor, request.received_at))
        finally:
            os.close(descriptor)
        content = StagedContent(size, digest.digest(), number, request.size)
        entry = content.entry(request.blob_id, _file(number))
        await self._in_thread(partial(self._record, [entry]))
        self._add({request.blob_id: content})

    def make_directories(self, paths: Sequence[str]) -> None:
        """Make the directories of mailboxes. `paths` are the mailboxes' paths. Raises OSError."""
        root = self.tree / MAIL
        make_directory(root)
        for path in paths:
            directory = root / path
            # In a snapshot of a part of a tree, some parent directories are not mailboxes.
            for parent in reversed(directory.relative_to(root).parents[:-1]):
                _make_if_new(root / parent)
            _make_if_new(directory)

    def move_to_tree(self, names: Mapping[str, str]) -> dict[str, StagedContent]:
        """Move staged contents into the tree. `names` maps blob ids to files in the tree.

        Return the contents that were moved. Raises OSError.
        """
        moves = [
            (blob_id, self._contents.pop(blob_id), f"{_TREE}/{file}")
            for blob_id, file in names.items()
            if blob_id in self._contents
        ]
        self._record(content.entry(blob_id, file) for blob_id, content, file in moves)
        for _, content, file in moves:
            os.rename(f"{self._root}/{_file(content.number)}", f"{self._root}/{file}")  # noqa: PTH104
        return {blob_id: content for blob_id, content, _ in moves}

    def move_missing(self) -> str:
        """Move the list of missing mails into the tree. Return its SHA-256, "" if there is none."""
        sha256 = self.missing.finish()
        if sha256:
            self.missing.path.rename(self.tree / MISSING)
        return sha256

    def publish(self, date: str) -> Path:
        """Rename the tree to its date, and sync the new name. Raises OSError."""
        path = self._repository.path / date
        self.tree.rename(path)
        sync_directory(self._repository.path)
        return path

    def _add(self, contents: dict[str, StagedContent]) -> None:
        self._contents.update(contents)
        size = sum(content.size for content in contents.values())
        self.downloaded += BlobTotals(len(contents), size)

    def _write_files(
        self, contents: Sequence[tuple[BlobRequest, bytes]]
    ) -> dict[str, StagedContent]:
        written = {}
        entries = []
        for request, data in contents:
            digest = hashlib.sha256(data)
            content = StagedContent(len(data), digest.digest(), next(self._numbers), request.size)
            descriptor = self._create(content.number)
            try:
                write_all(descriptor, data)
                _set_time(descriptor, request.received_at)
            finally:
                os.close(descriptor)
            written[request.blob_id] = content
            entries.append(content.entry(request.blob_id, _file(content.number)))
        self._record(entries)
        return written

    def _record(self, entries: Iterable[_Entry]) -> None:
        """Append entries to the journal. May be called from any thread."""
        # One call writes all lines, because other threads may append between two calls.
        write_all(self._journal, b"".join(msgspec.json.encode(one) + b"\n" for one in entries))

    def _delete(self, content: StagedContent) -> None:
        # The next run must not adopt this file instead of a new one.
        with contextlib.suppress(FileNotFoundError):
            (self.path / _file(content.number)).unlink()

    def _create(self, number: int) -> int:
        return create_file(f"{self._root}/{_file(number)}")

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        with storage_errors(self._repository.path):
            return await trio.to_thread.run_sync(work, limiter=self._threads)


class InterruptedRuns:
    """The directories of interrupted runs, in `paths`. Those that others could change are left out.

    Raises StorageError if the repository cannot be read.
    """

    def __init__(self, repository: Repository) -> None:
        self.paths = [path for path in repository.unfinished() if _is_private(path)]
        self._repository = repository

    def origins(self) -> list[Origin]:
        """Return the accounts of the runs, as far as their journals name them."""
        heads = map(_read_head, self.paths)
        return [head.origin for head in heads if head is not None]

    def move_to(self, staging: Staging) -> None:
        """Move the usable contents to a new run, and delete the old directories. Raises OSError."""
        for path in self.paths:
            head = _read_head(path)
            if staging.accepts(None if head is None else head.epoch):
                for entry in _read_entries(path):
                    staging.adopt(path / entry.file, entry)
            self._repository.remove_partial(path)


def _is_private(path: Path) -> bool:
    try:
        require_private(path, shared=True)
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.warning("%s is left alone: %s", path, error.strerror)
        return False
    return True


def _read_head(path: Path) -> _Head | None:
    try:
        with open_reading(path / _JOURNAL) as file:
            return msgspec.json.decode(file.readline(), type=_Head)
    except (OSError, *UNDECODABLE):
        return None


def _read_entries(path: Path) -> Iterator[_Entry]:
    """Yield the valid lines of a journal. A moved content has several lines, in order."""
    decoder = msgspec.json.Decoder(_Entry)
    try:
        with open_reading(path / _JOURNAL) as file:
            file.readline()
            for line in file:
                try:
                    entry = decoder.decode(line)
                except UNDECODABLE:
                    # A crash may damage single lines. All other lines are complete.
                    continue
                if _is_ours(entry.file):
                    yield entry
    except OSError:
        return


def _is_ours(file: str) -> bool:
    """Return whether a run writes files with this path. Files with other paths stay."""
    place, _, rest = file.partition("/")
    if place == _CONTENT:
        return rest.isascii() and rest.isdecimal()
    return place == _TREE and is_mail_file(rest)


def _make_if_new(directory: Path) -> None:
    with contextlib.suppress(FileExistsError):
        make_directory(directory)


def _is_file(path: Path) -> bool:
    # A damaged journal may contain a name that is too long for any file.
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _file(number: int) -> str:
    return f"{_CONTENT}/{number}"


def _set_time(descriptor: int, received_at: int) -> None:
    # Times before 1970 become 1970, as in a mount: some file systems cannot store them.
    when = max(received_at, 0) * _NANOSECONDS
    os.utime(descriptor, ns=(when, when))
