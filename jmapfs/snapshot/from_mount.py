"""A snapshot of a mounted tree: copied through the mount, which is held at one state meanwhile.

Content is read from files, as any program would, and comes from the mount's caches where they
have it. What files do not show (ids, keywords, mailboxes) the mount tells over its control socket.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import trio

from jmapfs.cache.disk_cache import SMALL_BYTES
from jmapfs.control.mounts import socket_directory, socket_name
from jmapfs.control.socket_client import SYNC_SECONDS, Hold, ask, hold
from jmapfs.errors import (
    IncompleteError,
    JmapfsError,
    NotMountedError,
    RelayedError,
    UnreachableError,
    lone_errors,
)
from jmapfs.index.rows import EmailRow, EmailSlice
from jmapfs.snapshot.manifest import Origin
from jmapfs.snapshot.source import (
    BlobRequest,
    BlobTotals,
    EarlySink,
    Sink,
    SnapshotReport,
    split_into_batches,
)
from jmapfs.tree.export import ExportedMailbox
from jmapfs.tree.status_file import time_text

_T = TypeVar("_T")

_PART: Final = 2000
_ANSWER_SECONDS: Final = 300.0
# Often enough for the mount to know that somebody is there.
_STAY_SECONDS: Final = 60.0

# One batch is read while another is written. Read one after the other, the files of a directory
# come in order, and the mount reads ahead.
_TASKS: Final = 2
_BATCH_FILES: Final = 128
_BATCH_BYTES: Final = 4 * 1024 * 1024
_PIECE_BYTES: Final = 1 << 20


class _Tree(msgspec.Struct, frozen=True):
    """What the mount says of the tree that is to be copied; see `mount.holding`."""

    server: str
    account_id: str
    account_name: str
    username: str
    email_state: str
    synced_at: float
    settled: bool
    root: str
    directory: str
    mails: int
    mailboxes: list[ExportedMailbox]


class _Part(msgspec.Struct, frozen=True):
    mails: list[EmailRow]
    after: int | None


class MountOpener:
    """Opens states of what is mounted at `mountpoint`; of the part of it at `path` below that.

    With `allow_stale`, the mount need not be up to date.
    """

    def __init__(
        self, mountpoint: Path, path: str, report: SnapshotReport, *, allow_stale: bool = False
    ) -> None:
        self._allow_stale = allow_stale
        self._mountpoint = mountpoint
        self._path = path
        self._report = report

    @contextlib.asynccontextmanager
    async def open(self, _ahead: EarlySink) -> AsyncIterator[_MountedTree]:
        """Bring the mount up to date, and hold it at the state that it shows then."""
        is_up_to_date = await self._bring_up_to_date()
        began = time.time()
        async with contextlib.AsyncExitStack() as stack:
            held = await _answered(
                partial(stack.enter_context, hold(self._mountpoint, seconds=_ANSWER_SECONDS))
            )
            tree = await _answered(partial(_MountedTree, held, self._mountpoint, self._path))
            if held.since < began:
                self._tell(f"is frozen: what follows is its state of {time_text(held.since)}")
            elif not is_up_to_date:
                self._tell(f"is behind: what follows is its state of {time_text(tree.synced_at)}")
            if not tree.settled:
                self._tell("is between two states of the account: what follows is no one state")
            with lone_errors():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tree.stay)
                    yield tree
                    nursery.cancel_scope.cancel()

    def _tell(self, text: str) -> None:
        self._report.notice(f"{self._mountpoint} {text}")

    async def _bring_up_to_date(self) -> bool:
        """Have the mount ask the server; False where it cannot, and an older state will do."""
        try:
            asking = partial(_ask, self._mountpoint, "sync", seconds=SYNC_SECONDS, path=self._path)
            await _answered(asking)
        except NotMountedError:
            raise
        except JmapfsError as error:
            text = f"{self._mountpoint} cannot be brought up to date: {error}"
            if not self._allow_stale:
                text += " (--allow-stale copies it as it is)"
                raise RelayedError(text, error.exit_code) from error
            self._report.notice(text)
            return False
        return True


class _MountedTree:
    """A tree, or a part of it, that a mount holds at one state."""

    concurrency = _TASKS
    # The mount knows, and does not say it of single files.
    cached = BlobTotals(0, 0)

    def __init__(self, held: Hold, mountpoint: Path, path: str) -> None:
        self._hold = held
        self._mountpoint = mountpoint
        self._path = path
        # The connection is for one question at a time.
        self._asking = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(1)
        self._looked_at: set[Path] = set()
        tree = msgspec.convert(self._ask("describe", path=path), _Tree)
        self._root = mountpoint / tree.root
        self.origin = Origin(
            server=tree.server,
            account_id=tree.account_id,
            account_name=tree.account_name,
            username=tree.username,
            directory=tree.directory,
        )
        self.email_state = tree.email_state
        self.synced_at = tree.synced_at
        self.settled = tree.settled
        self.mail_count = tree.mails
        self.mailboxes: Sequence[ExportedMailbox] = tree.mailboxes

    async def emails_after(self, position: int) -> EmailSlice:
        """Return some mails from a position on, in order."""
        asking = partial(self._ask, "mails", path=self._path, after=position, count=_PART)
        answer = await trio.to_thread.run_sync(asking, limiter=self._asking)
        part = msgspec.convert(answer, _Part)
        return EmailSlice(part.mails, part.after)

    def batches(self, wanted: Sequence[BlobRequest]) -> Iterator[Sequence[BlobRequest]]:
        """Divide what is wanted by directories, in their order: so the mount reads ahead."""
        in_order = sorted(wanted, key=lambda one: one.file.encode())
        for _, of_one in groupby(in_order, key=_directory):
            yield from split_into_batches(
                of_one, max_blobs=_BATCH_FILES, max_bytes=_BATCH_BYTES, alone_above=SMALL_BYTES
            )

    async def download(self, batch: Sequence[BlobRequest], sink: Sink) -> dict[str, JmapfsError]:
        """Bring contents; see `Source.download`."""
        failed: dict[str, JmapfsError] = {}
        if batch[0].size > SMALL_BYTES:
            await self._bring_large(batch[0], sink, failed)
        else:
            # A daemon that was stopped answers no read, and need not be waited for.
            found = await trio.to_thread.run_sync(
                self._read_all, batch, failed, limiter=self._reading, abandon_on_cancel=True
            )
            await sink.write(found)
        if failed:
            await trio.to_thread.run_sync(self._require_online)
        return failed

    async def still_frozen(self) -> bool:
        """Tell whether the mount has held the state: it may have been thawed meanwhile."""
        asking = partial(self._ask, "held")
        answer = await trio.to_thread.run_sync(asking, limiter=self._asking)
        return bool(answer["held"])

    async def stay(self) -> None:
        """Let the mount know now and then that its state is still wanted."""
        while True:
            await trio.sleep(_STAY_SECONDS)
            # Whoever copies finds out by itself, and says it better.
            with contextlib.suppress(JmapfsError):
                await self.still_frozen()

    async def _bring_large(
        self, wanted: BlobRequest, sink: Sink, failed: dict[str, JmapfsError]
    ) -> None:
        try:
            await sink.write_stream(wanted, self._chunks(wanted))
        except IncompleteError as error:
            failed[wanted.blob_id] = error

    async def _chunks(self, wanted: BlobRequest) -> AsyncIterator[bytes]:
        path = self._root / wanted.file
        size = 0
        try:
            opening: Callable[[], io.FileIO] = partial(io.FileIO, path)
            with await trio.to_thread.run_sync(opening) as file:
                while piece := await trio.to_thread.run_sync(file.read, _PIECE_BYTES):
                    size += len(piece)
                    yield piece
        except OSError as error:
            raise _failure(path, error) from error
        if size != wanted.size:
            raise IncompleteError(f"{path}: {size} of {wanted.size} bytes")

    def _read_all(
        self, batch: Sequence[BlobRequest], failed: dict[str, JmapfsError]
    ) -> list[tuple[BlobRequest, bytes]]:
        found = []
        self._look_at((self._root / batch[0].file).parent)
        for wanted in batch:
            path = self._root / wanted.file
            try:
                data = path.read_bytes()
            except OSError as error:
                failed[wanted.blob_id] = _failure(path, error)
                continue
            if len(data) != wanted.size:
                failed[wanted.blob_id] = IncompleteError(
                    f"{path}: {len(data)} of {wanted.size} bytes"
                )
                continue
            found.append((wanted, data))
        return found

    def _look_at(self, directory: Path) -> None:
        """Let the kernel know the files of a directory: it takes nothing ahead for others."""
        if directory in self._looked_at:
            return
        self._looked_at.add(directory)
        # What is wrong with it is found out when its files are read.
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)

    def _require_online(self) -> None:
        """Find out whether it is the mails that are at fault, or the way to the server.

        Raises:
            UnreachableError: the mount is offline.
            NotMountedError: its daemon does not answer.
        """
        status = _ask(self._mountpoint, "status", seconds=_ANSWER_SECONDS)
        accounts: list[dict[str, Any]] = status.get("accounts", [status])
        for account in accounts:
            if account["account_id"] == self.origin.account_id and not account["online"]:
                raise UnreachableError(f"{self._mountpoint} is offline: {account['error']}")

    def _ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON is anything
        return self._hold.ask(command, arguments, seconds=_ANSWER_SECONDS)


async def _answered(question: Callable[[], _T]) -> _T:
    # Whoever is tired of waiting need not: all that is left behind is a connection.
    return await trio.to_thread.run_sync(question, abandon_on_cancel=True)


def _ask(mountpoint: Path, command: str, *, seconds: float, **arguments: object) -> Any:  # noqa: ANN401 - JSON is anything
    return ask(
        socket_directory(), socket_name(mountpoint), command, seconds=seconds, arguments=arguments
    )


def _directory(wanted: BlobRequest) -> str:
    return wanted.file.rpartition("/")[0]


def _failure(path: Path, error: OSError) -> JmapfsError:
    if error.errno in {errno.ENOTCONN, errno.ECONNABORTED}:
        raise NotMountedError(f"{path}: {error.strerror}") from error
    return IncompleteError(f"{path}: {error.strerror}")
