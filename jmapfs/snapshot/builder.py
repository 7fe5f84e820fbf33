"""Building the tree of a snapshot: for each mail its files, and its line in the manifest.

Mails come in parts, in order. A part is first looked through for what is not at hand: neither
placed before, nor in the last snapshot, nor left by an interrupted run. When that has come, the
part is placed: what is new is moved to its first name, and everything else is one more name of
what there is.

Which content a manifest has, by blob id: that of the last snapshot, and of the one being made.

Memory has two numbers for each blob: of its id a hash, and where its line begins. The line itself
is read when it is asked for, and says whether it is the blob that was meant.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Self

from jmapfs.errors import IncompleteError, StorageError
from jmapfs.index.rows import EmailRow
from jmapfs.snapshot.links import LinkStrategy, has_content
from jmapfs.snapshot.manifest import (
    MAIL,
    MANIFEST,
    ManifestWriter,
    SavedMail,
    SavedPlace,
    decode_line,
    read_lines,
    utc_date,
)
from jmapfs.snapshot.repository import Snapshot
from jmapfs.snapshot.source import BlobRequest
from jmapfs.snapshot.staging import Staging
from jmapfs.tree.export import ExportedMailbox

_LINE_BYTES: Final = 4096


class BlobLines:
    """The lines of a manifest by the blob ids in them, one line each; within `with`."""

    def __init__(self, manifest: Path) -> None:
        self._lines: dict[int, int] = {}
        self._descriptor = os.open(manifest, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, blob_id: str, position: int) -> None:
        """Note that the line of a blob begins there; the first one counts."""
        self._lines.setdefault(hash(blob_id), position)

    def find(self, blob_id: str) -> SavedMail | None:
        """Return the mail in whose line a blob is."""
        position = self._lines.get(hash(blob_id))
        if position is None:
            return None
        mail = decode_line(self._line(position))
        return mail if mail.blob_id == blob_id else None

    def __contains__(self, blob_id: str) -> bool:
        return hash(blob_id) in self._lines

    def missing_from(self, other: BlobLines) -> int:
        """Return how many blobs are here and not there."""
        return sum(1 for blob in self._lines if blob not in other._lines)

    def _line(self, position: int) -> bytes:
        line = b""
        while b"\n" not in line:
            piece = os.pread(self._descriptor, max(_LINE_BYTES, len(line)), position + len(line))
            if not piece:
                break
            line += piece
        return line.partition(b"\n")[0]


class BaseSnapshot(BlobLines):
    """The contents of a snapshot that can be shared with the next one.

    With `doubted`, a file is read before it is said to be there: something was wrong with some.
    """

    def __init__(self, snapshot: Snapshot, *, doubted: bool) -> None:
        super().__init__(snapshot.path / MANIFEST)
        self.date = snapshot.date
        self.taken = snapshot.taken
        self._directory = os.fspath(snapshot.path)
        self._doubted = doubted
        for position, mail in read_lines(snapshot.path):
            self.add(mail.blob_id, position)

    def doubt(self) -> None:
        """Read each file from here on, before it is said to be there."""
        self._doubted = True

    def content(self, blob_id: str) -> tuple[str, SavedMail] | None:
        """Return a file that has the blob's content, and what is on record of it."""
        mail = self.find(blob_id)
        if mail is None:
            return None
        for place in mail.mailboxes:
            path = f"{self._directory}/{place.file}"
            if self._has(path, mail):
                return path, mail
        return None

    def _has(self, path: str, mail: SavedMail) -> bool:
        if self._doubted:
            return has_content(path, mail.size, mail.sha256)
        try:
            status = os.lstat(path)
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == mail.size


class _File(NamedTuple):
    """A file that has a content: a path, its size in bytes, the SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(slots=True)
class BuildPlan:
    """A part of the mails, and what of it is `wanted`; `shared` is in the last snapshot."""

    mails: Sequence[EmailRow]
    wanted: list[BlobRequest] = field(default_factory=list)
    shared: dict[str, _File] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """What a snapshot comes to: `files` counts names, `bytes` and `new` each blob once."""

    mails: int = 0
    files: int = 0
    bytes: int = 0
    new: int = 0
    new_bytes: int = 0
    taken_over: int = 0


class TreeBuilder:
    """Builds the tree of one partial; synchronous, for one worker thread at a time.

    Raises OSError where the destination fails, in everything.
    """

    def __init__(
        self,
        partial: Staging,
        manifest: ManifestWriter,
        sharing: LinkStrategy,
        previous: BaseSnapshot | None,
    ) -> None:
        self.tally = Tally()
        self.placed = BlobLines(partial.tree / MANIFEST)
        self._partial = partial
        self._manifest = manifest
        self._sharing = sharing
        self._previous = previous
        self._mailboxes: dict[str, ExportedMailbox] = {}
        self._ordered: set[str] = set()
        self._tree = os.fspath(partial.tree)

    def missing(self, candidates: Sequence[BlobRequest]) -> list[BlobRequest]:
        """Return what is not at hand, before there is a state to be built; it is ordered now."""
        found = []
        for wanted in candidates:
            blob_id = wanted.blob_id
            if blob_id not in self._ordered and not self._at_hand(blob_id):
                self._ordered.add(blob_id)
                found.append(wanted)
        return found

    def begin(self, mailboxes: Sequence[ExportedMailbox]) -> None:
        """Begin the tree of a state; what was ordered before has come, or will not come."""
        self._ordered.clear()
        self._mailboxes = {mailbox.id: mailbox for mailbox in mailboxes}
        self._partial.make_directories([mailbox.path for mailbox in mailboxes])

    def plan(self, mails: Sequence[EmailRow]) -> BuildPlan:
        """Find out what of some mails is not at hand."""
        plan = BuildPlan(mails)
        contents = self._partial.contents
        for mail in mails:
            blob_id = mail.blob_id
            if (
                blob_id in self._ordered
                or blob_id in plan.shared
                or blob_id in self.placed
                or contents.find(blob_id) is not None
            ):
                continue
            shared = self._previous.content(blob_id) if self._previous is not None else None
            if shared is not None:
                path, saved = shared
                plan.shared[blob_id] = _File(path, saved.size, saved.sha256)
            elif not self._take_over(blob_id):
                self._ordered.add(blob_id)
                plan.wanted.append(
                    BlobRequest(blob_id, mail.size, mail.received_at, mail.files[0][1])
                )
        return plan

    def place(self, plan: BuildPlan) -> None:
        """Give the mails of a plan their files and lines; what was wanted has come."""
        files = self._moved(plan.mails) | plan.shared
        for mail in plan.mails:
            file = files.get(mail.blob_id) or self._earlier(mail.blob_id)
            saved = self._saved(mail, file)
            for place in saved.mailboxes:
                self._name(file, place)
            self._account_for(saved, file, new=mail.blob_id not in plan.shared)
        self._manifest.flush()
        self._ordered.difference_update(mail.blob_id for mail in plan.mails)

    def _at_hand(self, blob_id: str) -> bool:
        return (
            self._partial.contents.find(blob_id) is not None
            or (self._previous is not None and self._previous.content(blob_id) is not None)
            or self._take_over(blob_id)
        )

    def _take_over(self, blob_id: str) -> bool:
        taken = self._partial.contents.check(blob_id)
        self.tally.taken_over += taken
        return taken

    def _moved(self, mails: Sequence[EmailRow]) -> dict[str, _File]:
        """Move what has come to its first name; return these files by blob id."""
        contents = self._partial.contents
        moves = []
        files = {}
        for mail in mails:
            content = contents.take(mail.blob_id)
            if content is None:
                continue
            file = f"{MAIL}/{mail.files[0][1]}"
            moves.append((mail.blob_id, content, self._partial.tree_file(file)))
            files[mail.blob_id] = _File(f"{self._tree}/{file}", content.size, content.digest.hex())
        contents.move(moves)
        return files

    def _earlier(self, blob_id: str) -> _File:
        saved = self.placed.find(blob_id)
        if saved is None:
            raise IncompleteError(f"blob {blob_id} did not come")
        return _File(f"{self._tree}/{saved.mailboxes[0].file}", saved.size, saved.sha256)

    def _name(self, file: _File, place: SavedPlace) -> None:
        path = f"{self._tree}/{place.file}"
        if path != file.path and not self._sharing.share(file.path, path, file.sha256):
            raise StorageError(f"{file.path} has changed while it was copied: run verify")

    def _saved(self, mail: EmailRow, file: _File) -> SavedMail:
        return SavedMail(
            mail.id,
            mail.blob_id,
            mail.thread_id,
            utc_date(mail.received_at),
            file.size,
            file.sha256,
            mail.keywords,
            tuple(self._place(mailbox_id, path) for mailbox_id, path in mail.files),
        )

    def _place(self, mailbox_id: str, path: str) -> SavedPlace:
        mailbox = self._mailboxes[mailbox_id]
        return SavedPlace(mailbox_id, mailbox.path, mailbox.role, f"{MAIL}/{path}")

    def _account_for(self, saved: SavedMail, file: _File, *, new: bool) -> None:
        position = self._manifest.add(saved)
        self.tally.mails += 1
        self.tally.files += len(saved.mailboxes)
        if saved.blob_id in self.placed:
            return
        self.placed.add(saved.blob_id, position)
        self.tally.bytes += file.size
        if self._previous is None or saved.blob_id not in self._previous:
            self.tally.new += 1
        if new:
            self.tally.new_bytes += file.size
