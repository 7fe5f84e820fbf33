"""Builds the tree of a snapshot: for each mail its files, and its line in the manifest.

The mails come in parts, in order. For each part, `plan` finds the contents that must be downloaded:
those that are neither in this snapshot already, nor in the base snapshot, nor left by an
interrupted run. When these contents are staged, `place` moves each new content to its first name in
the tree. All other names are linked to an existing file.

`BlobIndex` finds the manifest line of a blob, in the base snapshot and in the new one. It stores
two integers for each blob: the hash of the blob's id, and the position of the line. A lookup reads
the line and compares the id, because two ids can have the same hash.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from jmapfs.errors import IncompleteError, StorageError
from jmapfs.index.rows import EmailRow
from jmapfs.snapshot.files import Linker, has_content
from jmapfs.snapshot.manifest import (
    MAIL,
    MANIFEST,
    ManifestWriter,
    SavedMail,
    SavedPlace,
    decode_line,
    read_manifest,
    utc_date,
)
from jmapfs.snapshot.repository import Snapshot
from jmapfs.snapshot.source import BlobRequest
from jmapfs.snapshot.staging import Staging
from jmapfs.tree.layout import ExportedMailbox

_LINE_BYTES: Final = 4096


class BlobIndex(AbstractContextManager["BlobIndex"]):
    """Finds the line of a blob in a manifest. If there are several lines, the first one counts."""

    def __init__(self, manifest: Path) -> None:
        self._positions: dict[int, int] = {}
        self._descriptor = os.open(manifest, os.O_RDONLY | os.O_CLOEXEC)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def __len__(self) -> int:
        return len(self._positions)

    def __contains__(self, blob_id: str) -> bool:
        return hash(blob_id) in self._positions

    def add(self, blob_id: str, position: int) -> None:
        """Add a blob. Its line begins at `position`."""
        self._positions.setdefault(hash(blob_id), position)

    def find(self, blob_id: str) -> SavedMail | None:
        """Return the mail that the line of a blob describes."""
        position = self._positions.get(hash(blob_id))
        if position is None:
            return None
        mail = decode_line(self._read_line(position))
        return mail if mail.blob_id == blob_id else None

    def count_missing_from(self, other: BlobIndex) -> int:
        """Return the number of blobs that are in this index but not in `other`."""
        return sum(1 for blob in self._positions if blob not in other._positions)

    def _read_line(self, position: int) -> bytes:
        line = b""
        while b"\n" not in line:
            piece = os.pread(self._descriptor, max(_LINE_BYTES, len(line)), position + len(line))
            if not piece:
                break
            line += piece
        return line.partition(b"\n")[0]


class BaseSnapshot(BlobIndex):
    """The newest snapshot with an intact manifest. The new snapshot shares the files of this one.

    With `verify_content`, each file is read and verified before it is shared. Without, only its
    size must be right.
    """

    def __init__(self, snapshot: Snapshot, *, verify_content: bool) -> None:
        super().__init__(snapshot.path / MANIFEST)
        self.date = snapshot.date
        self.taken = snapshot.taken
        self.verify_content = verify_content
        self._directory = os.fspath(snapshot.path)
        try:
            for position, mail in read_manifest(snapshot.path):
                self.add(mail.blob_id, position)
        except BaseException:
            self.__exit__()
            raise

    def file(self, blob_id: str) -> SharedFile | None:
        """Return a file with the content of a blob."""
        mail = self.find(blob_id)
        if mail is not None:
            for place in mail.mailboxes:
                file = SharedFile(f"{self._directory}/{place.file}", mail.size, mail.sha256)
                if self._can_share(file):
                    return file
        return None

    def _can_share(self, file: SharedFile) -> bool:
        if self.verify_content:
            return has_content(file.path, file.size, file.sha256)
        try:
            status = os.lstat(file.path)
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == file.size


class SharedFile(NamedTuple):
    """A file with a content: its path, its `size` in bytes, and its SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(slots=True)
class BuildPlan:
    """Some of the mails, the contents to download, and the files to share with the base."""

    mails: Sequence[EmailRow]
    requests: list[BlobRequest] = field(default_factory=list)
    shared: dict[str, SharedFile] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """The totals of a snapshot. `files` counts names. `bytes` and `new` count each blob once."""

    mails: int = 0
    files: int = 0
    bytes: int = 0
    new: int = 0
    new_bytes: int = 0
    taken_over: int = 0


class TreeBuilder:
    """Builds the tree in a staging directory. Only one thread at a time may use it.

    `blobs` contains the blobs of all placed mails. The owner of the builder closes it. All methods
    raise OSError if the destination fails.
    """

    def __init__(
        self, staging: Staging, manifest: ManifestWriter, linker: Linker, base: BaseSnapshot | None
    ) -> None:
        self.tally = Tally()
        self.blobs = BlobIndex(staging.tree / MANIFEST)
        self._staging = staging
        self._manifest = manifest
        self._linker = linker
        self._base = base
        self._mailboxes: dict[str, ExportedMailbox] = {}
        self._requested: set[str] = set()
        self._tree = os.fspath(staging.tree)

    def missing(self, candidates: Sequence[BlobRequest]) -> list[BlobRequest]:
        """Return the candidates that must be downloaded. Called before the state is known."""
        missing = []
        for request in candidates:
            blob_id = request.blob_id
            if not (
                blob_id in self._requested
                or blob_id in self._staging
                or self._base_file(blob_id) is not None
                or self._recover(blob_id)
            ):
                self._requested.add(blob_id)
                missing.append(request)
        return missing

    def begin(self, mailboxes: Sequence[ExportedMailbox]) -> None:
        """Begin the tree of a state. All early downloads must have ended."""
        self._requested.clear()
        self._mailboxes = {mailbox.id: mailbox for mailbox in mailboxes}
        self._staging.make_directories([mailbox.path for mailbox in mailboxes])

    def plan(self, mails: Sequence[EmailRow]) -> BuildPlan:
        """Find out what must be downloaded for some mails."""
        plan = BuildPlan(mails)
        for mail in mails:
            blob_id = mail.blob_id
            if (
                blob_id in self._requested
                or blob_id in plan.shared
                or blob_id in self.blobs
                or blob_id in self._staging
            ):
                continue
            shared = self._base_file(blob_id)
            if shared is not None:
                plan.shared[blob_id] = shared
            elif not self._recover(blob_id):
                self._requested.add(blob_id)
                plan.requests.append(
                    BlobRequest(blob_id, mail.size, mail.received_at, mail.files[0][1])
                )
        return plan

    def place(self, plan: BuildPlan) -> None:
        """Write the files and lines of a plan's mails. All requested contents must be staged.

        Raises IncompleteError if a requested content is missing, and StorageError if a file of the
        base snapshot changed meanwhile.
        """
        files = self._move_staged(plan.mails) | plan.shared
        for mail in plan.mails:
            file = files.get(mail.blob_id) or self._placed_file(mail.blob_id)
            saved = self._saved(mail, file)
            for place in saved.mailboxes:
                path = f"{self._tree}/{place.file}"
                if path != file.path and not self._linker.link(file.path, path, file.sha256):
                    raise StorageError(f"{file.path} changed while it was copied: run verify")
            self._add(saved, is_shared=mail.blob_id in plan.shared)
        self._manifest.flush()
        self._requested.difference_update(mail.blob_id for mail in plan.mails)

    def _base_file(self, blob_id: str) -> SharedFile | None:
        return self._base.file(blob_id) if self._base is not None else None

    def _recover(self, blob_id: str) -> bool:
        recovered = self._staging.recover(blob_id)
        self.tally.taken_over += recovered
        return recovered

    def _move_staged(self, mails: Sequence[EmailRow]) -> dict[str, SharedFile]:
        """Move staged contents to their first names. Return the resulting files by blob id."""
        names: dict[str, str] = {}
        for mail in mails:
            names.setdefault(mail.blob_id, f"{MAIL}/{mail.files[0][1]}")
        moved = self._staging.move_to_tree(names)
        return {
            blob_id: SharedFile(
                f"{self._tree}/{names[blob_id]}", content.size, content.digest.hex()
            )
            for blob_id, content in moved.items()
        }

    def _placed_file(self, blob_id: str) -> SharedFile:
        saved = self.blobs.find(blob_id)
        if saved is None:
            raise IncompleteError(f"blob {blob_id} was not downloaded")
        return SharedFile(f"{self._tree}/{saved.mailboxes[0].file}", saved.size, saved.sha256)

    def _saved(self, mail: EmailRow, file: SharedFile) -> SavedMail:
        places = []
        for mailbox_id, path in mail.files:
            mailbox = self._mailboxes[mailbox_id]
            places.append(SavedPlace(mailbox_id, mailbox.path, mailbox.role, f"{MAIL}/{path}"))
        return SavedMail(
            mail.id,
            mail.blob_id,
            mail.thread_id,
            utc_date(mail.received_at),
            file.size,
            file.sha256,
            mail.keywords,
            tuple(places),
        )

    def _add(self, saved: SavedMail, *, is_shared: bool) -> None:
        position = self._manifest.add(saved)
        self.tally.mails += 1
        self.tally.files += len(saved.mailboxes)
        if saved.blob_id in self.blobs:
            return
        self.blobs.add(saved.blob_id, position)
        self.tally.bytes += saved.size
        if self._base is None or saved.blob_id not in self._base:
            self.tally.new += 1
        if not is_shared:
            self.tally.new_bytes += saved.size
