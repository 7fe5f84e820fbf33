"""The snapshot that is being made: its base, its staging directory and its metadata."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from jmapfs import __version__
from jmapfs.errors import JmapfsError, StorageError, TooMuchGoneError, storage_errors
from jmapfs.private_files import UnsafePathError, require_private
from jmapfs.snapshot.base import BaseSnapshot
from jmapfs.snapshot.builder import TreeBuilder
from jmapfs.snapshot.files import FileSystem, Linker
from jmapfs.snapshot.manifest import FORMAT, MAIL, Description, ManifestWriter, Origin, is_intact
from jmapfs.snapshot.owner import read_owner, write_owner
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import Source
from jmapfs.snapshot.staging import InterruptedRuns, Staging
from jmapfs.tree.status_file import time_text


class Scope(NamedTuple):
    """The account and the epoch of a snapshot, and whether its blob ids contain a SHA-1."""

    origin: Origin
    epoch: str
    blob_ids_are_sha1: bool


class Target:
    """The snapshot that is being made.

    base: the snapshot to whose files it links, or None.
    staging: its directory until it is published, on the `file_system`.
    builder: makes its tree.

    Its methods are for worker threads. Call `close` at the end. Raises ConfigError if the
    repository belongs to another account, and StorageError or OSError if it cannot be written.
    """

    def __init__(
        self,
        repository: Repository,
        scope: Scope,
        *,
        adopt: bool,
        notice: Callable[[str], None],
    ) -> None:
        origin, epoch, are_sha1 = scope
        self._repository = repository
        self._origin = origin
        self._notice = notice
        interrupted = InterruptedRuns(repository)
        if not adopt:
            repository.require_account(origin, interrupted.origins())
        newest = repository.newest_origin()
        self._adopted = None if newest is None or newest.is_same(origin) else newest
        if self._adopted is None:
            self._record_owner(origin)
        with contextlib.ExitStack() as stack:
            date = repository.next_date(datetime.now(UTC))
            self.staging = stack.enter_context(
                Staging(repository, date, origin, epoch, blob_ids_are_sha1=are_sha1)
            )
            self.file_system = stack.enter_context(FileSystem(self.staging.path))
            if interrupted.paths:
                # `has_content` must read from the disk, so write everything to the disk first.
                self.file_system.sync()
                interrupted.move_to(self.staging)
            self._linker = Linker(self.staging.path)
            if self._linker.links != "hard":
                how = {"reflink": "share blocks instead", "copy": "are copied"}[self._linker.links]
                notice(f"{repository.path} has no hard links: unchanged files {how}")
            self.base = self._open_base(scope)
            if self.base is not None:
                stack.enter_context(self.base)
            self._manifest = stack.enter_context(ManifestWriter(self.staging.tree))
            self.builder = TreeBuilder(self.staging, self._manifest, self._linker, self.base)
            stack.enter_context(self.builder.blobs)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the base and the staging directory, which stays if nothing was published."""
        self._stack.close()

    def finish(self, source: Source, date: str, max_gone: float) -> Description:
        """Write the metadata of the complete tree.

        Raises TooMuchGoneError if more than `max_gone` percent of the base snapshot's mail is gone.
        """
        base, tally = self.base, self.builder.tally
        gone = 0 if base is None else len(base)
        if base is not None and not self._base_is_other and 100 * gone > max_gone * base.total:
            raise TooMuchGoneError(
                f"{gone:,} of the {base.total:,} mails of {base.date} are gone"
                f" ({100 * gone / base.total:.0f} %), so no snapshot was made; --max-gone 100 makes"
                " one all the same"
            )
        description = Description(
            format=FORMAT,
            jmapfs=__version__,
            date=date,
            origin=source.origin,
            email_state=source.email_state,
            mails=tally.mails,
            files=tally.files,
            bytes=tally.bytes,
            previous=None if base is None else base.date,
            new=tally.new,
            gone=gone,
            added_bytes=tally.new_bytes + self._linker.copied_bytes,
            links=self._linker.links,
            mailboxes=tuple(source.mailboxes),
            epoch=source.epoch,
            blob_ids_are_sha1=source.blob_ids_are_sha1,
            missing=self.staging.missing.count,
            missing_sha256=self.staging.move_missing(),
            shortfall=source.lacking.shortfall,
            adopted=self._adopted,
            compared_at=time_text(source.compared_at) if source.compared_at else "",
        )
        self._manifest.finish(description)
        return description

    def publish(self, date: str) -> tuple[Path, StorageError | None]:
        """Publish the snapshot. Return its path and, if cleaning up failed, the error."""
        path = self.staging.publish(date)
        try:
            self._record_owner(self._origin)
            with storage_errors(path):
                self._repository.set_latest(date)
                self._repository.remove_partial(self.staging.path)
        except StorageError as error:
            return path, error
        return path, None

    def _record_owner(self, origin: Origin) -> None:
        if read_owner(self._repository.path) != origin:
            write_owner(self._repository.path, origin)

    def _open_base(self, scope: Scope) -> BaseSnapshot | None:
        self._base_is_other = False
        for snapshot in reversed(self._repository.snapshots()):
            try:
                # Another user could replace the files of such a snapshot later.
                require_private(snapshot.path / MAIL, named=self._repository.path, shared=True)
            except UnsafePathError as error:
                self._notice(f"{error.filename}: {error.strerror}; its files are not reused")
                continue
            except OSError:
                # It is damaged.
                pass
            if not is_intact(snapshot.path):
                self._notice(f"{snapshot.path} is damaged, so its files are not reused: run verify")
                continue
            # A later version may have described the snapshot.
            with contextlib.suppress(JmapfsError):
                description = snapshot.description()
                self._base_is_other = not description.origin.is_same(scope.origin)
                are_sha1 = scope.blob_ids_are_sha1 and description.blob_ids_are_sha1
                # In another account, a blob id may stand for other content.
                if self._base_is_other and not are_sha1:
                    continue
            # A file that is copied is read anyway, so its content can also be verified.
            return BaseSnapshot(
                snapshot,
                verify_content=self._linker.links == "copy",
                blob_ids_are_sha1=scope.blob_ids_are_sha1,
            )
        return None
