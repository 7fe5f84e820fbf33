"""Verifies a snapshot: reads everything in it, and compares it with its checksums.

    check names and sizes ── files to read, in parts ──> worker threads
    then search the directories for files that do not belong to the snapshot

`expected` says which files there should be. `verify_read` reads them, once for all snapshots that
share them.
"""

import itertools
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from jmapfs.errors import (
    AlteredFilesError,
    ExtraFilesError,
    JmapfsError,
    MissingFilesError,
    StorageError,
    UsageError,
    lone_errors,
    storage_errors,
)
from jmapfs.private_files import describe_type
from jmapfs.snapshot.expected import ExpectedContents, ExpectedMail
from jmapfs.snapshot.manifest import DESCRIPTION, MAIL, MISSING, Description
from jmapfs.snapshot.online import OnlineResult
from jmapfs.snapshot.repository import Repository, looks_like_snapshot
from jmapfs.snapshot.verify_read import Comparison, Finding, InodeCache, PendingRead, read_error
from jmapfs.snapshot.verify_record import Kind, Outcome

KINDS: Final[tuple[Kind, ...]] = ("altered", "missing", "extra")
"""All kinds of findings, the worst first. The worst kind that was found is the outcome."""

_ERRORS: Final[Mapping[Kind, type[JmapfsError]]] = {
    "altered": AlteredFilesError,
    "missing": MissingFilesError,
    "extra": ExtraFilesError,
}
# A part is the work of one thread. Larger parts would show progress less often.
_PART_MAILS: Final = 256
_PART_BYTES: Final = 8 << 20
# More threads would compete for a rotating disk, and for Python's lock.
_THREADS: Final = 4

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The result of verifying a snapshot.

    `mails` and `files` are the expected numbers; `files` counts names. `bytes_read` is the size of
    the mail that was read for this snapshot; files that were already read for an earlier snapshot
    do not count. `remarks` are facts that do no harm. `online` is the result of comparing it with
    the server, or None.
    """

    path: Path
    quick: bool
    mails: int
    files: int
    bytes_read: int
    findings: Sequence[Finding]
    remarks: Sequence[str]
    online: OnlineResult | None = None

    @property
    def outcome(self) -> Outcome:
        """The result in one word."""
        counts = self.counts()
        return next((kind for kind in KINDS if counts[kind]), "good")

    def counts(self) -> Counter[Kind]:
        """Return the number of findings of each kind."""
        return Counter(finding.kind for finding in self.findings)


def format_counts(results: Sequence[VerifyResult]) -> str:
    """Return the number of findings of each kind as text."""
    total = _total(results)
    return ", ".join(f"{total[kind]:,} {kind}" for kind in KINDS)


def error_for(results: Sequence[VerifyResult]) -> JmapfsError | None:
    """Return the error of the worst kind, with a summary of all findings. None if all is good."""
    wrong = [result for result in results if result.findings]
    total = _total(wrong)
    worst = next((kind for kind in KINDS if total[kind]), None)
    if worst is None:
        return None
    name = wrong[0].path.name if len(wrong) == 1 else f"{len(wrong):,} snapshots"
    files = sum(result.files for result in wrong)
    return _ERRORS[worst](f"{name}: {format_counts(wrong)} of {files:,} files")


def _total(results: Sequence[VerifyResult]) -> Counter[Kind]:
    return sum((result.counts() for result in results), Counter[Kind]())


class VerifyProgress(Protocol):
    """Receives the progress of a verification, in the event loop."""

    def started(self, description: Description | None) -> None:
        """Report the start. The description is None if it is damaged."""

    def checked(self, mails: int, size: int) -> None:
        """Report more checked mails, and their bytes, each blob counted once."""


def snapshots_at(place: Path) -> list[Path]:
    """Return the snapshot at a path, or the snapshots of the repository there, the oldest first.

    Raises UsageError if the path is neither a snapshot nor a repository with snapshots, and
    StorageError if the path cannot be read.
    """
    directory = Path(os.path.realpath(place))
    with storage_errors(place):
        if not directory.is_dir():
            what = "not a directory" if directory.exists() else "no such directory"
            raise UsageError(f"{place}: {what}")
        if looks_like_snapshot(directory):
            return [directory]
    repository = Repository(directory)
    paths = [snapshot.path for snapshot in repository.snapshots()]
    if not paths:
        repository.check_place()
        raise UsageError(f"{place}: neither a snapshot nor a directory with snapshots")
    return paths


async def verify(
    directory: Path, *, quick: bool, inodes: InodeCache, progress: VerifyProgress
) -> VerifyResult:
    """Verify a snapshot. With `quick`, the content of the mail is not read.

    Files that are known in `inodes` are not read again. Files that are read are added to `inodes`.
    Raises StorageError if the snapshot was removed meanwhile, or a newer jmapfs made the snapshot.
    """
    inodes.forget_pending()
    verifier = await _in_thread(partial(_Verifier, directory, quick=quick, inodes=inodes))
    await verifier.run(progress)
    return verifier.result()


@dataclass(slots=True)
class _Part:
    """Some mails with checked names and sizes: their number, their bytes, and the files to read."""

    mails: int = 0
    size: int = 0
    reads: list[PendingRead] = field(default_factory=list)


class _Verifier:
    """Verifies one snapshot, once. The object is constructed in a worker thread."""

    def __init__(self, directory: Path, *, quick: bool, inodes: InodeCache) -> None:
        self._directory = directory
        self._root = os.fspath(directory)
        self._quick = quick
        self._inodes = inodes
        self._read_before = inodes.bytes_read
        self._findings: list[Finding] = []
        self._separate = 0
        self._threads = trio.CapacityLimiter(_THREADS)
        self._inode = self._current_inode()
        self._expected = ExpectedContents(directory, self._findings)
        self._require_not_removed()
        self._mails: Iterator[ExpectedMail] = iter(self._expected)

    async def run(self, progress: VerifyProgress) -> None:
        progress.started(self._expected.description)
        with lone_errors():
            async with trio.open_nursery() as nursery:
                send, receive = trio.open_memory_channel[_Part](_THREADS)
                nursery.start_soon(self._check, send)
                async with receive:
                    for _ in range(_THREADS):
                        nursery.start_soon(self._read, receive.clone(), progress)
        await _in_thread(self._search_directories)

    def result(self) -> VerifyResult:
        expected, remarks = self._expected, []
        if self._separate:
            have = "mail has" if self._separate == 1 else "mails have"
            remarks.append(
                f"{self._separate:,} {have} several files that were hard links:"
                " the snapshot was copied without them"
            )
        description = expected.description
        if description is not None and description.lacking:
            files = [MISSING] * bool(description.missing)
            files += [DESCRIPTION] * (description.shortfall is not None)
            remarks.append(
                f"the snapshot was made without {description.lacking}: see {' and '.join(files)}"
            )
        if not expected.is_complete:
            remarks.append("extra files cannot be found: the lists of its files are damaged")
        return VerifyResult(
            self._directory,
            quick=self._quick,
            mails=expected.mails,
            files=expected.files,
            bytes_read=self._inodes.bytes_read - self._read_before,
            findings=sorted(self._findings),
            remarks=remarks,
        )

    async def _check(self, parts: trio.MemorySendChannel[_Part]) -> None:
        async with parts:
            while (part := await _in_thread(self._check_part)).mails:
                await parts.send(part)

    async def _read(
        self, parts: trio.MemoryReceiveChannel[_Part], progress: VerifyProgress
    ) -> None:
        async with parts:
            async for part in parts:
                if part.reads:
                    await _in_thread(partial(self._inodes.read, part.reads), self._threads)
                progress.checked(part.mails, part.size)

    def _check_part(self) -> _Part:
        part = _Part()
        found = len(self._findings)
        for mail in itertools.islice(self._mails, _PART_MAILS):
            self._check_mail(mail, part)
            trio.from_thread.check_cancelled()
            if part.size >= _PART_BYTES:
                break
        if len(self._findings) > found:
            self._require_not_removed()
        return part

    def _check_mail(self, mail: ExpectedMail, part: _Part) -> None:
        part.mails += 1
        inodes: set[tuple[int, int]] = set()
        for file in mail.files:
            path = f"{self._root}/{file}"
            status = self._file_status(path, file, mail.size)
            if status is None:
                continue
            if not (inodes or mail.again):
                part.size += status.st_size
            inodes.add((status.st_dev, status.st_ino))
            if not self._quick:
                comparison = Comparison(file, mail.digest, self._findings)
                pending = self._inodes.compare(status, path, comparison)
                if pending is not None:
                    part.reads.append(pending)
        description = self._expected.description
        if len(inodes) > 1 and description is not None and description.links == "hard":
            self._separate += 1

    def _file_status(self, path: str, file: str, size: int | None) -> os.stat_result | None:
        """Return the status of a regular file of the right size. Otherwise add a finding."""
        try:
            status = os.lstat(path)
        except OSError as error:
            self._findings.append(Finding(file, *read_error(error)))
            return None
        if not stat.S_ISREG(status.st_mode):
            detail = f"is {describe_type(status.st_mode)}, not a file"
        elif size not in {None, status.st_size}:
            detail = f"has {status.st_size:,} bytes, not {size:,}"
        else:
            return status
        self._findings.append(Finding(file, "altered", detail))
        return None

    def _search_directories(self) -> None:
        """Find the files that do not belong to the snapshot, and missing directories."""
        missing = set(self._expected.directories)
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
                        self._check_entry(path, entry)
            except OSError as error:
                self._findings.append(Finding(directory or ".", *read_error(error)))
                missing = {path for path in missing if not path.startswith(f"{directory}/")}
        self._findings += [Finding(path, "missing", "does not exist") for path in missing]
        if self._findings:
            self._require_not_removed()

    def _check_entry(self, path: str, entry: os.DirEntry[str]) -> None:
        """Add a finding for an extra entry. The types of expected files were checked before."""
        expected = self._expected
        is_directory = entry.is_dir(follow_symlinks=False)
        if expected.is_expected(path):
            return
        if path in expected.directories:
            if not is_directory:
                detail = f"is {_type_of(entry)}, not a directory"
                self._findings.append(Finding(path, "altered", detail))
        elif not path.startswith(f"{MAIL}/") or (
            expected.description is not None if is_directory else expected.is_complete
        ):
            detail = f"is {_type_of(entry)} that does not belong to the snapshot"
            self._findings.append(Finding(path, "extra", detail))

    def _current_inode(self) -> tuple[int, int]:
        try:
            status = self._directory.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise StorageError(f"{self._directory} was removed meanwhile") from None
        except OSError as error:
            raise StorageError(f"{self._directory}: {error.strerror}") from error
        return status.st_dev, status.st_ino

    def _require_not_removed(self) -> None:
        """Raise StorageError if files are missing because the whole snapshot was removed."""
        if self._current_inode() != self._inode:
            raise StorageError(f"{self._directory} was removed meanwhile")


def _type_of(entry: os.DirEntry[str]) -> str:
    # The entry may be gone by now, so this must not call stat(2).
    if entry.is_file(follow_symlinks=False):
        return "a file"
    if entry.is_dir(follow_symlinks=False):
        return "a directory"
    return "a symbolic link" if entry.is_symlink() else "a special file"


async def _in_thread(work: Callable[[], _T], limiter: trio.CapacityLimiter | None = None) -> _T:
    # The thread can be abandoned: Ctrl-C must work even if the disk does not answer.
    return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
