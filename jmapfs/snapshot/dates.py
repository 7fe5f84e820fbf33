"""Corrects the dates of snapshots that were made while the clock was wrong.

The names of snapshots are dates that grow. So one snapshot with a date in the future makes the
dates of all later ones wrong. When the clock is right, they can get other dates, in the same order:

- the time at which the description was written, if it is between the date before and now,
- otherwise the second after the snapshot before. The true time is not known.

Nothing is changed if the clock is obviously wrong now: true dates would be lost, and `prune` would
take the snapshots for ones of the same day.

A snapshot is renamed after its description and its checksum have the new date. If a run is killed
in between, the description does not match, and the next run completes the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from jmapfs.errors import AlteredFilesError, UsageError, storage_errors
from jmapfs.private_files import create_file, open_reading
from jmapfs.snapshot.files import sync_directory, write_all
from jmapfs.snapshot.manifest import (
    CHECKSUMS,
    DESCRIPTION,
    checksum_line,
    format_date,
    is_intact,
    read_last_lines,
    read_manifest,
    utc_date,
)
from jmapfs.snapshot.repository import Repository, Snapshot
from jmapfs.snapshot.verify_record import copy_verification

EARLIEST_RIGHT: Final = datetime(2025, 1, 1, tzinfo=UTC)
"""A clock that shows an earlier time is wrong."""

_SECOND: Final = timedelta(seconds=1)
# Some mails have wrong times of receipt. So many have not, as a number and as a part of all mails.
_LATER_MAILS: Final = 10
_LATER_PART: Final = 1 / 1000
_NEW: Final = ".new"


class CorrectedDate(NamedTuple):
    """A snapshot that was renamed."""

    old: str
    new: str


def correct_dates(repository: Repository, report: Callable[[CorrectedDate], None]) -> None:
    """Give all snapshots that are dated in the future another date; `report` each of them.

    Raises:
        UsageError: the directory does not exist, or the clock is wrong now.
        BusyError: another process is using the repository.
        AlteredFilesError: a snapshot is damaged, so its date is not changed.
        StorageError: something cannot be read or written.
    """
    repository.require_directory()
    now = datetime.now(UTC)
    if not repository.in_future(now) and not _latest_is_gone(repository):
        return
    with repository.lock():
        future = repository.in_future(now)
        damaged = [one for one in future if not _is_usable(one)]
        usable = [one for one in future if one not in damaged]
        _require_right_clock(usable, now)
        latest = repository.latest_date()
        for snapshot, date in _dates(repository, usable, now):
            copy_verification(repository.path, snapshot.date, date)
            with storage_errors(snapshot.path):
                _rename(repository, snapshot, date)
                if latest == snapshot.date:
                    repository.set_latest(date)
            report(CorrectedDate(snapshot.date, date))
        if _latest_is_gone(repository):
            # The last run was killed when it had renamed this snapshot.
            with storage_errors(repository.path):
                repository.set_latest(repository.snapshots()[-1].date)
    if damaged:
        raise AlteredFilesError(
            f"{damaged[0].path} is damaged, so it keeps its date: move it to another directory"
        )


def _latest_is_gone(repository: Repository) -> bool:
    date = repository.latest_date()
    dates = [one.date for one in repository.snapshots()]
    return date is not None and bool(dates) and date not in dates


def _require_right_clock(future: Sequence[Snapshot], now: datetime) -> None:
    """Raise UsageError if the clock is before 2025, or before the receipt of much of the mail."""
    is_wrong = now < EARLIEST_RIGHT
    if future and not is_wrong:
        shown = utc_date(int(now.timestamp()))
        later = total = 0
        for _, mail in read_manifest(future[-1].path):
            total += 1
            later += mail.received_at > shown
        is_wrong = later >= _LATER_MAILS and later > total * _LATER_PART
    if is_wrong:
        raise UsageError(
            f"the clock of this machine is wrong: it shows {format_date(now)}. Set it first; no"
            " date was changed"
        )


def _dates(
    repository: Repository, future: Sequence[Snapshot], now: datetime
) -> list[tuple[Snapshot, str]]:
    """Return snapshots in the future, the oldest first, each with its new date."""
    others = [one.taken for one in repository.snapshots() if not one.is_later_than(now)]
    before = max(others, default=None)
    taken: list[datetime | None] = []
    for snapshot in future:
        made = _time_of_description(snapshot)
        if made is not None and made <= now and (before is None or made > before):
            before = made
        elif before is not None:
            before += _SECOND
        taken.append(before)
    return [
        (snapshot, format_date(date))
        for snapshot, date in zip(future, _without_gaps(taken, now), strict=True)
    ]


def _without_gaps(taken: Sequence[datetime | None], now: datetime) -> list[datetime]:
    """Date the first snapshots of a repository, before which there is none, by those after them."""
    after = now + _SECOND
    dates = []
    for date in reversed(taken):
        after = after - _SECOND if date is None else date
        dates.append(after)
    return dates[::-1]


def _time_of_description(snapshot: Snapshot) -> datetime | None:
    try:
        status = (snapshot.path / DESCRIPTION).lstat()
    except OSError:
        return None
    return datetime.fromtimestamp(int(status.st_mtime), UTC)


def _is_usable(snapshot: Snapshot) -> bool:
    """Return whether the checksums are those of the description, or of one with its old date."""
    with contextlib.suppress(OSError, ValueError):
        # Also a description with right checksums may be none.
        old = _with_date(_read(snapshot.path / DESCRIPTION), snapshot.date)
        return is_intact(snapshot.path) or _last_line(snapshot) == _line(old)
    return False


def _rename(repository: Repository, snapshot: Snapshot, date: str) -> None:
    """Give a snapshot another date. Raises OSError."""
    target = repository.path / date
    if os.path.lexists(target):
        raise UsageError(f"{target} is in the way of {snapshot.path}: move it")
    description = _with_date(_read(snapshot.path / DESCRIPTION), date)
    checksums = _read(snapshot.path / CHECKSUMS)
    old = _last_line(snapshot)
    _replace(repository, snapshot.path / DESCRIPTION, description)
    _replace(repository, snapshot.path / CHECKSUMS, checksums[: -len(old)] + _line(description))
    snapshot.path.rename(target)
    sync_directory(repository.path)


def _with_date(description: bytes, date: str) -> bytes:
    """Return a description with another date. All dates have the same length."""
    before, key, after = description.partition(b'\n  "date": "')
    if not key or after[len(date) : len(date) + 1] != b'"':
        raise ValueError("not the description of a snapshot")
    return before + key + date.encode() + after[len(date) :]


def _line(description: bytes) -> bytes:
    return checksum_line(hashlib.sha256(description).hexdigest(), DESCRIPTION)


def _last_line(snapshot: Snapshot) -> bytes:
    with open_reading(snapshot.path / CHECKSUMS) as file:
        return read_last_lines(file, 1)[0]


def _read(path: Path) -> bytes:
    with open_reading(path) as file:
        return file.read()


def _replace(repository: Repository, path: Path, content: bytes) -> None:
    """Replace a file of a snapshot in one step. It keeps its times."""
    status = path.lstat()
    new = repository.state_directory / f"{path.name}{_NEW}"
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    descriptor = create_file(new)
    try:
        write_all(descriptor, content)
        os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)
    sync_directory(path.parent)
