"""Builds the tree of a snapshot: for each mail its files, and its line in the manifest.

The mails come in parts, in order. For each part, `plan` finds the contents that must be downloaded:
those that are neither in this snapshot already, nor in the base snapshot, nor left by an
interrupted run. When these contents are staged, `place` moves each new content to its first name in
the tree. All other names are linked to an existing file. A mail whose content could not be
downloaded gets no file, but a line in `missing.jsonl`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from jmapfs.errors import IncompleteError, StorageError
from jmapfs.index.rows import EmailRow
from jmapfs.snapshot.base import BaseSnapshot, LineIndex, SharedFile
from jmapfs.snapshot.files import Linker
from jmapfs.snapshot.manifest import (
    MAIL,
    MANIFEST,
    ManifestWriter,
    SavedMail,
    SavedPlace,
    utc_date,
)
from jmapfs.snapshot.missing import MissingMail
from jmapfs.snapshot.source import BlobRequest
from jmapfs.snapshot.staging import Staging
from jmapfs.tree.export import ExportedMailbox


@dataclass(slots=True)
class BuildPlan:
    """Some of the mails, the contents to download, and the files to share with the base.

    `staged` counts the contents that earlier attempts or early downloads have staged.
    """

    mails: Sequence[EmailRow]
    requests: list[BlobRequest] = field(default_factory=list)
    shared: dict[str, SharedFile] = field(default_factory=dict)
    staged: int = 0


@dataclass(slots=True)
class Tally:
    """The totals of a snapshot. `files` counts names. All others but `mails` count each blob once.

    `replaced` counts the blobs that have another content in the base snapshot.
    """

    mails: int = 0
    files: int = 0
    bytes: int = 0
    new: int = 0
    new_bytes: int = 0
    taken_over: int = 0
    replaced: int = 0


class TreeBuilder:
    """Builds the tree in a staging directory. Only one thread at a time may use it.

    `blobs` contains the blobs of all placed mails. The owner of the builder closes it. The keys of
    all placed or missing mails are discarded from the base: the rest of the base is gone. All
    methods raise OSError if the destination fails.
    """

    def __init__(
        self, staging: Staging, manifest: ManifestWriter, linker: Linker, base: BaseSnapshot | None
    ) -> None:
        self.tally = Tally()
        self.blobs = LineIndex(staging.tree / MANIFEST)
        self._staging = staging
        self._manifest = manifest
        self._linker = linker
        self._base = base
        self._mailboxes: dict[str, ExportedMailbox] = {}
        self._requested: set[str] = set()
        self._epoch = ""
        self._tree = os.fspath(staging.tree)

    def missing(self, candidates: Sequence[BlobRequest]) -> list[BlobRequest]:
        """Return the candidates that must be downloaded. Called before the state is known."""
        missing = []
        for request in candidates:
            blob_id = request.blob_id
            if not (
                blob_id in self._requested
                or self._is_staged(blob_id, request.size)
                or self._base_file(blob_id, request.received_at, request.size, request.size)
                is not None
            ):
                self._requested.add(blob_id)
                missing.append(request)
        return missing

    def begin(self, mailboxes: Sequence[ExportedMailbox], epoch: str) -> None:
        """Begin the tree of a state. All early downloads must have ended."""
        self._requested.clear()
        self._epoch = epoch
        self._mailboxes = {mailbox.id: mailbox for mailbox in mailboxes}
        self._staging.make_directories([mailbox.path for mailbox in mailboxes])

    def plan(self, mails: Sequence[EmailRow]) -> BuildPlan:
        """Find out what must be downloaded for some mails."""
        plan = BuildPlan(mails)
        for mail in mails:
            blob_id = mail.blob_id
            if blob_id in self._requested or blob_id in plan.shared or blob_id in self.blobs:
                continue
            if self._is_staged(blob_id, mail.size):
                plan.staged += 1
                continue
            shared = self._base_file(blob_id, mail.received_at, mail.size, mail.server_size)
            if shared is not None:
                plan.shared[blob_id] = shared
            else:
                self._request(mail, plan)
        return plan

    def unrequested(self, plan: BuildPlan) -> dict[str, SharedFile]:
        """Return the files of contents that a plan uses without requesting them, by blob id."""
        files = dict(plan.shared)
        for mail in plan.mails:
            if mail.blob_id not in self._requested and mail.blob_id not in self.blobs:
                staged = self._staging.file(mail.blob_id)
                if staged is not None:
                    files[mail.blob_id] = staged
        return files

    def reject(self, plan: BuildPlan, blob_ids: Collection[str]) -> None:
        """Request contents that `unrequested` returned: they are not what the server has."""
        for mail in plan.mails:
            if mail.blob_id in blob_ids and mail.blob_id not in self._requested:
                plan.shared.pop(mail.blob_id, None)
                self._staging.discard(mail.blob_id)
                self._request(mail, plan)

    def place(self, plan: BuildPlan, failed: Mapping[str, str]) -> None:
        """Write the files and lines of a plan's mails, but only note those that are missing.

        All requested contents must be staged, or be in `failed` with a reason. Raises
        IncompleteError if a requested content is neither, and StorageError if a file of the base
        snapshot changed meanwhile.
        """
        files = self._move_staged(plan.mails) | plan.shared
        for mail in plan.mails:
            file = files.get(mail.blob_id) or self._placed_file(mail.blob_id)
            if file is None:
                self._note_missing(mail, failed)
                continue
            saved = self._saved(mail, file)
            for place in saved.mailboxes:
                path = f"{self._tree}/{place.file}"
                if path != file.path and not self._linker.link(file.path, path, file.sha256):
                    raise StorageError(f"{file.path} changed while it was copied: run verify")
            self._add(mail, saved, is_shared=mail.blob_id in plan.shared)
        self._manifest.flush()
        self._requested.difference_update(mail.blob_id for mail in plan.mails)

    def note_missing(self, plan: BuildPlan, failed: Mapping[str, str]) -> None:
        """Note the mails of a plan that are missing. The plan is not placed."""
        for mail in plan.mails:
            if mail.blob_id in failed:
                self._note_missing(mail, failed)

    def _note_missing(self, mail: EmailRow, failed: Mapping[str, str]) -> None:
        reason = failed.get(mail.blob_id)
        if reason is None:
            raise IncompleteError(f"email {mail.id} was not downloaded")
        files = tuple(path for _, path in mail.files)
        when = utc_date(mail.received_at)
        self._staging.missing.add(
            [MissingMail(mail.id, mail.blob_id, when, mail.server_size, files, reason)]
        )
        if self._base is not None:
            self._base.discard(self._base.key(mail.blob_id, mail.received_at))

    def _request(self, mail: EmailRow, plan: BuildPlan) -> None:
        self._requested.add(mail.blob_id)
        file = mail.files[0][1]
        plan.requests.append(
            BlobRequest(mail.blob_id, mail.size, mail.received_at, file, mail.id, self._epoch)
        )

    def _base_file(
        self, blob_id: str, received_at: int, size: int, stated_size: int
    ) -> SharedFile | None:
        if self._base is None:
            return None
        return self._base.file(blob_id, received_at, size, stated_size)

    def _is_staged(self, blob_id: str, size: int) -> bool:
        """Return whether a content is staged, perhaps by an interrupted run."""
        if self._staging.has(blob_id, size):
            return True
        recovered = self._staging.recover(blob_id, size)
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

    def _placed_file(self, blob_id: str) -> SharedFile | None:
        saved = self.blobs.find(blob_id)
        if saved is None:
            return None
        path = f"{self._tree}/{saved.mailboxes[0].file}"
        return SharedFile(path, saved.content_size, saved.sha256)

    def _saved(self, mail: EmailRow, file: SharedFile) -> SavedMail:
        places = []
        for mailbox_id, path in mail.files:
            mailbox = self._mailboxes[mailbox_id]
            places.append(SavedPlace(mailbox_id, mailbox.path, mailbox.role, f"{MAIL}/{path}"))
        stated = mail.server_size
        return SavedMail(
            mail.id,
            mail.blob_id,
            mail.thread_id,
            utc_date(mail.received_at),
            stated,
            file.sha256,
            mail.keywords,
            tuple(places),
            None if file.size == stated else file.size,
        )

    def _add(self, mail: EmailRow, saved: SavedMail, *, is_shared: bool) -> None:
        position = self._manifest.add(saved)
        self.tally.mails += 1
        self.tally.files += len(saved.mailboxes)
        is_known = False
        if self._base is not None:
            key = self._base.key(mail.blob_id, mail.received_at)
            before = None if is_shared else self._base.find(key)
            self.tally.replaced += before is not None and before.sha256 != saved.sha256
            is_known = self._base.discard(key)
        if saved.blob_id in self.blobs:
            return
        self.blobs.add(saved.blob_id, position)
        self.tally.bytes += saved.content_size
        self.tally.new += not is_known
        if not is_shared:
            self.tally.new_bytes += saved.content_size
