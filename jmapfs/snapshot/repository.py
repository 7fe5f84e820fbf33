"""The directory that contains snapshots, and the list of these snapshots.

    DEST/2026-11-22T010203Z/     a snapshot
    DEST/.partial-…              a snapshot being made or removed; nothing else is ever deleted
    DEST/latest                  a symbolic link to the newest snapshot, for people and scripts
    DEST/.jmapfs/                the lock, the owner, and the results of `jmapfs verify`

All other files are left alone. The names of snapshots are times in UTC, and sort in the order in
which the snapshots were made.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from jmapfs.errors import (
    ConfigError,
    JmapfsError,
    StorageError,
    UsageError,
    storage_errors,
)
from jmapfs.locking import process_lock
from jmapfs.private_files import UnsafePathError, make_directory, private_directory
from jmapfs.snapshot.files import delete_tree, sync_directory
from jmapfs.snapshot.manifest import (
    DESCRIPTION,
    MANIFEST,
    METADATA_FILES,
    Description,
    Origin,
    format_date,
    parse_date,
    read_description,
)
from jmapfs.snapshot.owner import has_owner, read_owner
from jmapfs.snapshot.verify_record import STATE_DIRECTORY

LATEST: Final = "latest"

_PARTIAL: Final = ".partial-"
_PRUNED: Final = "-pruned"
_PARTIAL_NAME: Final = re.compile(rf"{re.escape(_PARTIAL)}(.*Z)(-\d+|{_PRUNED})?", re.ASCII)
# Clocks differ, and some machines have had the wrong time zone.
_AHEAD: Final = timedelta(days=1)
# File systems, desktops, NAS and programs for backups put these into directories of users.
_HARMLESS: Final = frozenset(
    {
        *("lost+found", "CACHEDIR.TAG", "System Volume Information", "$RECYCLE.BIN"),
        *("desktop.ini", "@eaDir", "#recycle", "@Recycle"),
    }
)
CORRECT_DATES: Final = "jmapfs snapshots {} --correct-dates"
"""The command that corrects the dates of snapshots in a directory."""
# The errors of file systems without symbolic links.
_NO_SYMLINKS: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A directory that has the name, and at least one metadata file, of a snapshot.

    `taken` is when it was made, in UTC.
    """

    path: Path
    taken: datetime

    @property
    def date(self) -> str:
        """The name of the directory."""
        return self.path.name

    def is_later_than(self, now: datetime) -> bool:
        """Return whether the date is in the future, so that a clock was wrong then, or is now."""
        return self.taken > now + _AHEAD

    def description(self) -> Description:
        """Return the description of the snapshot. Raises the same errors as `read_description`."""
        return read_description(self.path)


@dataclass(frozen=True, slots=True)
class Repository:
    """A directory of snapshots. The directory need not exist yet."""

    path: Path

    @property
    def state_directory(self) -> Path:
        """The directory for files that belong to no snapshot."""
        return self.path / STATE_DIRECTORY

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock in the context, so that no other process makes or removes snapshots.

        Raises on entry:
            BusyError: another process holds it.
            StorageError: the lock cannot be created, or the state directory cannot be trusted.
        """
        with storage_errors(self.state_directory):
            private_directory(self.state_directory, shared=True)
        with process_lock(self.state_directory / "lock", f"the snapshots in {self.path}"):
            yield

    def create(self, *, force: bool = False) -> None:
        """Create the directory if it does not exist, but not its parents.

        Raises UsageError if the parent does not exist, if the path is not a directory, or if it
        must not become a repository, and StorageError if the directory cannot be created. With
        `force`, a directory that contains other things becomes a repository.
        """
        self.check_place()
        is_new = not force and self.path.is_dir() and not self.is_begun()
        if is_new and (other := self._foreign_name()) is not None:
            raise UsageError(
                f"{self.path} has no snapshots, but other files, such as {other}: name an empty or"
                f" a new directory, such as {self.path / 'snapshots'}, or use --force-destination"
            )
        try:
            if not self.path.is_dir():
                make_directory(self.path)
            private_directory(self.state_directory, shared=True)
        except FileNotFoundError:
            if self.path.parent.is_dir():
                raise StorageError(f"{self.path}: nothing can be created there") from None
            raise UsageError(f"{self.path.parent}: no such directory") from None
        except FileExistsError:
            raise UsageError(f"{self.path}: not a directory") from None
        except NotADirectoryError:
            raise UsageError(f"{self.path.parent}: not a directory") from None
        except UnsafePathError as error:
            raise StorageError(f"{error.filename}: {error.strerror}") from error
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error

    def require_directory(self) -> None:
        """Raise UsageError unless the directory exists, and can contain snapshots.

        Earlier versions made snapshots inside of snapshots. They can be listed and removed.
        """
        if not self.path.is_dir():
            what = "not a directory" if self.path.exists() else "no such directory"
            raise UsageError(f"{self.path}: {what}")
        if not self.snapshots():
            self.check_place()

    def check_place(self) -> None:
        """Raise UsageError if the directory is, or is inside of, something that jmapfs made."""
        path = Path(os.path.realpath(self.path))
        for one in (*reversed(path.parents), path):
            if is_snapshot(one):
                part = "is" if one == path else f"is inside of {one}, which is"
                use = one.parent if parse_date(one.name) is not None else "another directory"
                raise UsageError(f"{path} {part} a snapshot: use {use}")
            is_state = one.name == STATE_DIRECTORY or _is_partial(one.name)
            if is_state and Repository(one.parent).is_begun():
                raise UsageError(f"{path}: jmapfs may delete what is there: use {one.parent}")

    def is_begun(self) -> bool:
        """Return whether jmapfs has begun to make snapshots in this directory."""
        return has_owner(self.path) or bool(self.snapshots() or self.unfinished())

    def _foreign_name(self) -> str | None:
        """Return the first name in the directory that is not of jmapfs, or None.

        Hidden files do not count, nor what file systems and desktops put into directories.
        """
        with storage_errors(self.path):
            names = sorted(os.listdir(self.path))  # noqa: PTH208 - names, not paths
        return next((one for one in names if one[0] != "." and one not in _HARMLESS), None)

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots, the oldest first.

        Raises StorageError if the directory cannot be read.
        """
        return [
            Snapshot(Path(entry.path), taken)
            for entry in self._directories()
            if (taken := parse_date(entry.name)) is not None and looks_like_snapshot(Path(entry))
        ]

    def snapshot(self, date: str) -> Snapshot:
        """Return the snapshot with this date, or the snapshot that `latest` points to.

        Raises UsageError if the snapshot does not exist.
        """
        name = date
        with contextlib.suppress(OSError):
            if date == LATEST:
                name = os.readlink(self.path / LATEST)  # noqa: PTH115 - its text, not a path
        path = self.path / name
        taken = parse_date(name)
        if taken is None or not looks_like_snapshot(path):
            self.require_directory()
            raise UsageError(f"{self.path}: there is no snapshot {date}")
        return Snapshot(path, taken)

    def next_date(self, now: datetime) -> str:
        """Return a name for a snapshot taken now. The name is later than all existing names."""
        snapshots = self.snapshots()
        try:
            return format_date(max([now, *(one.taken + timedelta(seconds=1) for one in snapshots)]))
        except OverflowError:
            raise UsageError(
                f"{snapshots[-1].path} was made with a wrong clock, and no date is later: run"
                f" {CORRECT_DATES.format(self.path)}"
            ) from None

    def in_future(self, now: datetime) -> list[Snapshot]:
        """Return the snapshots whose dates are later than now, the oldest first."""
        return [one for one in self.snapshots() if one.is_later_than(now)]

    def unfinished(self) -> list[Path]:
        """Return the directories of interrupted runs, those of `jmapfs prune` included.

        Raises StorageError if the directory cannot be read.
        """
        return [Path(entry.path) for entry in self._directories() if _is_partial(entry.name)]

    def half_removed(self) -> list[Path]:
        """Return the snapshots that prune has renamed but not completely deleted."""
        return [path for path in self.unfinished() if path.name.endswith(_PRUNED)]

    def new_partial(self, date: str) -> Path:
        """Return the path of a new directory for a snapshot that is begun at this date."""
        path = self.path / f"{_PARTIAL}{date}"
        # An earlier run may have begun in the same second, or with its clock ahead.
        number = 1
        while path.exists():
            number += 1
            path = self.path / f"{_PARTIAL}{date}-{number}"
        return path

    def remove_snapshot(self, date: str) -> int:
        """Delete a snapshot.

        The snapshot is renamed first, so that a partly deleted snapshot never has a date as its
        name. The result and the errors are those of `remove_partial`.
        """
        path = self.path / f"{_PARTIAL}{date}{_PRUNED}"
        try:
            (self.path / date).rename(path)
            sync_directory(self.path)
        except OSError as error:
            raise StorageError(f"{self.path / date} cannot be removed: {error.strerror}") from error
        return self.remove_partial(path)

    def remove_partial(self, path: Path) -> int:
        """Delete one of the `unfinished` directories, if it still exists.

        Returns the size of the files that had no other name. Other snapshots keep the files that
        they share with this directory. Raises StorageError if the directory cannot be deleted.
        Raises ValueError, and deletes nothing, if the directory is not an unfinished one.
        """
        if not os.path.lexists(path):
            return 0
        if path not in self.unfinished():
            raise ValueError(f"{path} is not for jmapfs to delete")
        try:
            return delete_tree(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be removed: {error.strerror}") from error

    def latest_date(self) -> str | None:
        """Return the date that `latest` points to, whether or not that snapshot exists."""
        try:
            name = str(Path(self.path / LATEST).readlink())
        except OSError:
            return None
        return name if parse_date(name) is not None else None

    def set_latest(self, date: str) -> None:
        """Point `latest` to the snapshot of a date. The caller must hold the lock.

        Do nothing if the file system has no symbolic links, or if `latest` is not a symbolic link
        and so belongs to the user. Raises OSError if the link cannot be written.
        """
        link = self.path / LATEST
        if os.path.lexists(link) and not link.is_symlink():
            return
        # Nothing in this directory belongs to the user, so a file of an earlier run can be removed.
        new = self.state_directory / LATEST
        new.unlink(missing_ok=True)
        try:
            new.symlink_to(date)
        except OSError as error:
            if error.errno in _NO_SYMLINKS:
                return
            raise
        new.rename(link)
        sync_directory(self.path)

    def require_account(self, origin: Origin, others: Iterable[Origin]) -> None:
        """Check that the repository, and all `others`, belong to the account `origin`.

        Raises ConfigError if one belongs to another account, or to another part of the account.
        """
        newest = self.newest_origin()
        for other in (*others, newest):
            if other is not None and not other.is_same(origin):
                raise ConfigError(
                    f"{self.path} has snapshots of {origin_text(other)}, not of"
                    f" {origin_text(origin)}: choose another directory, or continue this one with"
                    " --adopt"
                )

    def newest_origin(self) -> Origin | None:
        """Return the account and the part of it that the repository belongs to, if it is known.

        This is the origin of the newest snapshot that has a readable description, or else the
        recorded owner. Raises StorageError if a later jmapfs has made the repository.
        """
        owner = read_owner(self.path)
        for snapshot in reversed(self.snapshots()):
            with contextlib.suppress(JmapfsError):
                return snapshot.description().origin
        return owner

    def _directories(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.path) as entries:
                directories = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error
        return sorted(directories, key=lambda entry: entry.name)


def looks_like_snapshot(directory: Path) -> bool:
    """Return whether a directory is a snapshot, whatever its name."""
    # One metadata file is enough. A snapshot without the others is damaged, but still ours.
    return any(os.path.lexists(directory / name) for name in METADATA_FILES)


def is_snapshot(directory: Path) -> bool:
    """Return whether a directory is a snapshot, or a copy of one, and nothing else looks so."""
    if parse_date(directory.name) is not None:
        return looks_like_snapshot(directory)
    return all(os.path.lexists(directory / name) for name in (MANIFEST, DESCRIPTION))


def _is_partial(name: str) -> bool:
    match = _PARTIAL_NAME.fullmatch(name)
    return match is not None and parse_date(match[1]) is not None


def repository_of(directory: Path) -> Repository | None:
    """Return the repository that contains a snapshot. Return None for a copy somewhere else.

    Raises StorageError if the parent directory cannot be read.
    """
    if parse_date(directory.name) is None:
        return None
    repository = Repository(directory.parent)
    if repository.state_directory.is_dir():
        return repository
    return repository if any(one.path != directory for one in repository.snapshots()) else None


def origin_text(origin: Origin) -> str:
    """Return an account, and the part of it, as text."""
    part = f"{origin.directory} of " if origin.directory else ""
    name = origin.account_name or origin.account_id
    user = f" of {origin.username}" if origin.username not in {"", name} else ""
    return f"{part}account {name}{user} at {origin.server}"
