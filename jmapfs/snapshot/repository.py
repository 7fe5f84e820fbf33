"""`latest`: a symbolic link to the newest snapshot, for people and scripts.

The directory that snapshots are in, and which of what is in it is ours.

    DEST/2026-11-22T010203Z/     a snapshot
    DEST/.partial-…              one being made, or unmade; the only thing that is ever deleted
    DEST/latest                  a symbolic link to the last one
    DEST/.jmapfs/                the lock, and what `jmapfs verify` found

Whatever else is there is left alone. Names of snapshots are times in UTC, and they are in the
order in which the snapshots were made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx

from jmapfs.errors import ConfigError, JmapfsError, StorageError, UsageError
from jmapfs.jmap.origins import origin_of
from jmapfs.snapshot.files import sync_directory
from jmapfs.snapshot.manifest import METADATA_FILES, Description, Origin, read_description

PARTIAL: Final = ".partial-"
LATEST: Final = "latest"

_STATE: Final = ".jmapfs"
_MODE: Final = 0o700
_DATE_FORMAT: Final = "%Y-%m-%dT%H%M%SZ"
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z")
_PARTIAL_NAME: Final = re.compile(rf"{re.escape(PARTIAL)}({_DATE.pattern})(-\d+|-pruned)?")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A directory that has the name and the looks of a snapshot of ours."""

    path: Path

    @property
    def date(self) -> str:
        """Its name."""
        return self.path.name

    @property
    def taken(self) -> datetime:
        """When it was taken, in UTC."""
        return datetime.strptime(self.date, _DATE_FORMAT).replace(tzinfo=UTC)

    def description(self) -> Description:
        """Return what it says of itself; raises as `read_description`."""
        return read_description(self.path)


@dataclass(frozen=True, slots=True)
class Repository:
    """A directory of snapshots; it need not be there yet."""

    path: Path

    @property
    def state_directory(self) -> Path:
        """Where things are kept that belong to no snapshot."""
        return self.path / _STATE

    @property
    def lock_path(self) -> Path:
        """The lock of whoever makes or removes snapshots."""
        return self.state_directory / "lock"

    def make(self) -> None:
        """Make the directory if it is not there, but none above it.

        Raises:
            UsageError: there is no directory above it, or it is something else.
            StorageError: it cannot be made.
        """
        try:
            self.path.mkdir(mode=_MODE, exist_ok=True)
            self.state_directory.mkdir(mode=_MODE, exist_ok=True)
        except FileNotFoundError:
            raise UsageError(f"{self.path.parent}: there is no such directory") from None
        except FileExistsError:
            raise UsageError(f"{self.path}: not a directory") from None
        except NotADirectoryError:
            raise UsageError(f"{self.path.parent}: not a directory") from None
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots, the oldest first.

        Raises:
            StorageError: the directory cannot be read.
        """
        return [
            Snapshot(Path(entry.path))
            for entry in self._entries()
            if is_date(entry.name)
            and entry.is_dir(follow_symlinks=False)
            and looks_like_one(Path(entry.path))
        ]

    def snapshot(self, date: str) -> Snapshot:
        """Return the snapshot of a date, or of `latest`.

        Raises:
            UsageError: there is none.
        """
        name = date
        with contextlib.suppress(OSError):
            if date == LATEST:
                name = os.readlink(self.path / LATEST)  # noqa: PTH115 - its text, not a path
        path = self.path / name
        if not (is_date(name) and looks_like_one(path)):
            raise UsageError(f"{self.path}: there is no snapshot {date}")
        return Snapshot(path)

    def partials(self) -> list[Path]:
        """Return what was begun and not ended, by earlier runs as well; see `snapshots`."""
        return [
            Path(entry.path)
            for entry in self._entries()
            if (match := _PARTIAL_NAME.fullmatch(entry.name)) is not None
            and is_date(match[1])
            and entry.is_dir(follow_symlinks=False)
        ]

    def next_date(self, now: datetime) -> str:
        """Return a name for a snapshot that is taken now: later than all that there are."""
        taken = [snapshot.taken for snapshot in self.snapshots()]
        return max([now, *(when + timedelta(seconds=1) for when in taken)]).strftime(_DATE_FORMAT)

    def require_origin(self, origin: Origin, partials: list[Origin]) -> None:
        """Check that what is here is of the same account, and the same part of it.

        Raises:
            ConfigError: it is of another.
        """
        known = partials + [found for found in [self._origin()] if found is not None]
        for one in known:
            if identity(one) != identity(origin):
                raise ConfigError(
                    f"{self.path} has snapshots of {_named(one)}, not of {_named(origin)}:"
                    " choose another directory"
                )

    def _origin(self) -> Origin | None:
        """Return where the mail here is from, by the newest snapshot that says so."""
        for snapshot in reversed(self.snapshots()):
            try:
                return snapshot.description().origin
            except JmapfsError:
                continue
        return None

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.path) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error


def is_date(name: str) -> bool:
    """Tell whether a name is one that a snapshot has."""
    if _DATE.fullmatch(name) is None:
        return False
    try:
        datetime.strptime(name, _DATE_FORMAT)  # noqa: DTZ007 - whether it is one, not which
    except ValueError:
        return False
    return True


def looks_like_one(directory: Path) -> bool:
    """Tell whether a directory is a snapshot, whatever its name."""
    # Each is enough: one that has lost the others is still ours, and damaged.
    return any(os.path.lexists(directory / name) for name in METADATA_FILES)


def identity(origin: Origin) -> tuple[str, str, str]:
    """Return what tells whose mail it is: the server may move its API, and rename the account."""
    server = origin.server
    # What a snapshot says of itself can be anything at all.
    with contextlib.suppress(httpx.InvalidURL, ValueError):
        server = origin_of(server)
    return server, origin.account_id, origin.directory


def _named(origin: Origin) -> str:
    part = f"{origin.directory} of " if origin.directory else ""
    return f"{part}account {origin.account_name or origin.account_id} at {origin.server}"


# What file systems answer that have no symbolic links.
_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
)


def point_latest(destination: Repository, date: str) -> bool:
    """Let `latest` lead to the snapshot of a date; False where there can be no such link.

    Where something that is no symbolic link has the name, it is the user's, and stays. The
    destination is made, and the caller has its lock.

    Raises:
        OSError: the link cannot be written.
    """
    link = destination.path / LATEST
    if os.path.lexists(link) and not link.is_symlink():
        return False
    # Where nothing is the user's, so what a run that was killed has left can go.
    following = destination.state_directory / LATEST
    with contextlib.suppress(FileNotFoundError):
        following.unlink()
    try:
        following.symlink_to(date)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    following.rename(link)
    sync_directory(destination.path)
    return True


def latest_date(destination: Repository) -> str | None:
    """Return the date that `latest` leads to, whether or not it is there; None if to no date."""
    try:
        name = str(Path(destination.path / LATEST).readlink())
    except OSError:
        return None
    return name if is_date(name) else None
