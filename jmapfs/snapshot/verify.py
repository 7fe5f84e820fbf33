"""Verifying a snapshot: everything in it is read again, and compared with what it was.

    look at files ──> readings, some at a time ──> worker threads
    then look through the directories for what is not of the snapshot

What the files should be is read along the way (`listing`), and what was read for one snapshot
need not be read again for another one that shares it (`reading`).
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from jmapfs.errors import StorageError, UsageError, lone_errors
from jmapfs.snapshot.expected import ExpectedContents, ExpectedMail
from jmapfs.snapshot.findings import Finding, VerifyResult
from jmapfs.snapshot.manifest import MAIL, METADATA_FILES, Description
from jmapfs.snapshot.repository import Repository, looks_like_one
from jmapfs.snapshot.verify_read import Claim, FileReads, Inodes, fault_of, wrong_kind

# A part is what a thread does at a time: long enough to be worth it, short enough to be seen.
_PART_MAILS: Final = 256
_PART_BYTES: Final = 8 << 20
# More of them would be in each other's way: on a disk that turns, and for Python's lock.
_THREADS: Final = 4

_T = TypeVar("_T")


class VerifyProgress(Protocol):
    """Takes how far it is, in the event loop."""

    def began(self, description: Description | None) -> None:
        """Begin; the description is that of the snapshot, if it can be believed."""
        ...

    def checked(self, mails: int, size: int) -> None:
        """So many more mails are checked, with so many more bytes, each blob once."""
        ...


def snapshots_at(place: Path) -> list[Path]:
    """Return the snapshot that a directory is, or those that are in it, the oldest first.

    Raises:
        UsageError: it is neither a snapshot nor a directory of some.
        StorageError: it cannot be read.
    """
    directory = Path(os.path.realpath(place))
    try:
        if not directory.is_dir():
            what = "not a directory" if directory.exists() else "there is no such directory"
            raise UsageError(f"{place}: {what}")
        if looks_like_one(directory):
            return [directory]
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror}") from error
    found = [snapshot.path for snapshot in Repository(directory).snapshots()]
    if not found:
        raise UsageError(f"{place}: neither a snapshot nor a directory with snapshots")
    return found


async def verify(
    directory: Path, *, quick: bool, inodes: Inodes, progress: VerifyProgress
) -> VerifyResult:
    """Verify a snapshot; with `quick` all but the content of mail.

    `inodes` is what is known of files, and is added to.

    Raises:
        StorageError: the snapshot is removed meanwhile, or is of a later jmapfs.
    """
    inodes.begin()
    verifying = _Verifying(directory, quick=quick, inodes=inodes)
    await verifying.run(progress)
    return verifying.result()


@dataclass(slots=True)
class _Part:
    """What was looked at: `mails` with `size` bytes; `readings` is what is to be read for it."""

    mails: int = 0
    size: int = 0
    readings: list[FileReads] = field(default_factory=list)


class _Verifying:
    def __init__(self, directory: Path, *, quick: bool, inodes: Inodes) -> None:
        self._directory = directory
        self._root = os.fspath(directory)
        self._quick = quick
        self._inodes = inodes
        self._read_before = inodes.bytes_read
        self._findings: list[Finding] = []
        self._listing = ExpectedContents(directory, self._findings)
        self._mails: Iterator[ExpectedMail] = iter(())
        self._separate = 0
        self._threads = trio.CapacityLimiter(_THREADS)

    async def run(self, progress: VerifyProgress) -> None:
        """Do everything there is to do."""
        with lone_errors():
            await _in_thread(self._open)
            progress.began(self._listing.description)
            async with trio.open_nursery() as nursery:
                send, receive = trio.open_memory_channel[_Part](_THREADS)
                nursery.start_soon(self._look, send)
                async with receive:
                    for _ in range(_THREADS):
                        nursery.start_soon(self._read, receive.clone(), progress)
            await _in_thread(self._look_through)

    def result(self) -> VerifyResult:
        """Return what was found."""
        listing, remarks = self._listing, []
        if self._separate:
            have = "mail has" if self._separate == 1 else "mails have"
            remarks.append(
                f"{self._separate:,} {have} several files that were one:"
                " it was copied without hard links"
            )
        if not listing.is_whole:
            remarks.append("what is extra in it cannot be told: its lists are damaged")
        return VerifyResult(
            self._directory,
            quick=self._quick,
            mails=listing.mails,
            files=listing.files,
            bytes_read=self._inodes.bytes_read - self._read_before,
            findings=sorted(self._findings),
            remarks=remarks,
        )

    async def _look(self, parts: trio.MemorySendChannel[_Part]) -> None:
        async with parts:
            while (part := await _in_thread(self._next_part)).mails:
                await parts.send(part)

    async def _read(
        self, parts: trio.MemoryReceiveChannel[_Part], progress: VerifyProgress
    ) -> None:
        async with parts:
            async for part in parts:
                if part.readings:
                    await _in_thread(partial(self._inodes.read, part.readings), self._threads)
                progress.checked(part.mails, part.size)

    def _open(self) -> None:
        self._identity = self._identified()
        self._listing.open()
        self._require_there()
        self._mails = iter(self._listing)

    def _next_part(self) -> _Part:
        part = _Part()
        found = len(self._findings)
        for mail in itertools.islice(self._mails, _PART_MAILS):
            self._check(mail, part)
            trio.from_thread.check_cancelled()
            if part.size >= _PART_BYTES:
                break
        if len(self._findings) > found:
            self._require_there()
        return part

    def _check(self, mail: ExpectedMail, part: _Part) -> None:
        part.mails += 1
        inodes: set[tuple[int, int]] = set()
        for file in mail.files:
            path = f"{self._root}/{file}"
            status = self._status(path, file, mail.size)
            if status is None:
                continue
            if not (inodes or mail.again):
                part.size += status.st_size
            inodes.add((status.st_dev, status.st_ino))
            if not self._quick:
                claim = Claim(file, mail.digest, self._findings)
                reading = self._inodes.claim(status, path, claim)
                if reading is not None:
                    part.readings.append(reading)
        description = self._listing.description
        if len(inodes) > 1 and description is not None and description.links == "hard":
            self._separate += 1

    def _status(self, path: str, file: str, size: int | None) -> os.stat_result | None:
        """Return the status of a regular file that has its size; else it is a finding."""
        try:
            status = os.lstat(path)
        except OSError as error:
            self._findings.append(Finding(file, *fault_of(error)))
            return None
        if not stat.S_ISREG(status.st_mode):
            what = f"is {wrong_kind(status.st_mode)}, not a file"
        elif size not in {None, status.st_size}:
            what = f"has {status.st_size:,} bytes, not {size:,}"
        else:
            return status
        self._findings.append(Finding(file, "altered", what))
        return None

    def _look_through(self) -> None:
        """Find what is not of the snapshot, and directories that are gone."""
        missing = set(self._listing.directories)
        pending = [""]
        while pending:
            directory = pending.pop()
            try:
                with os.scandir(f"{self._root}/{directory}") as entries:
                    for entry in entries:
                        trio.from_thread.check_cancelled()
                        path = f"{directory}/{entry.name}" if directory else entry.name
                        missing.discard(path)
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(path)
                        self._judge(path, entry)
            except OSError as error:
                self._findings.append(Finding(directory or ".", *fault_of(error)))
                missing = {path for path in missing if not path.startswith(f"{directory}/")}
        self._findings += [Finding(path, "missing", "is not there") for path in missing]
        if self._findings:
            self._require_there()

    def _judge(self, path: str, entry: os.DirEntry[str]) -> None:
        """Note what is extra; of files that are listed, their kind was looked at before."""
        listing = self._listing
        is_directory = entry.is_dir(follow_symlinks=False)
        if path in METADATA_FILES or path in listing.paths:
            return
        if path in listing.directories:
            if not is_directory:
                kind = wrong_kind(entry.stat(follow_symlinks=False).st_mode)
                what = f"is {kind}, not a directory"
                self._findings.append(Finding(path, "altered", what))
        elif not path.startswith(f"{MAIL}/") or (
            listing.knows_directories if is_directory else listing.is_whole
        ):
            kind = _kind(entry)
            self._findings.append(Finding(path, "extra", f"is {kind} that is not of the snapshot"))

    def _identified(self) -> tuple[int, int]:
        try:
            status = self._directory.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise StorageError(f"{self._directory} was removed meanwhile") from None
        except OSError as error:
            raise StorageError(f"{self._directory}: {error.strerror}") from error
        return status.st_dev, status.st_ino

    def _require_there(self) -> None:
        """Raise if all that is missing is so since somebody has removed the snapshot."""
        if self._identified() != self._identity:
            raise StorageError(f"{self._directory} was removed meanwhile")


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_file(follow_symlinks=False):
        return "a file"
    if entry.is_dir(follow_symlinks=False):
        return "a directory"
    return "a symbolic link" if entry.is_symlink() else "a special file"


async def _in_thread(work: Callable[[], _T], limiter: trio.CapacityLimiter | None = None) -> _T:
    # A disk that does not answer is not to keep the user from ending it.
    return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
