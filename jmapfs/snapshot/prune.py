"""Removes old snapshots by a retention policy, but never the newest good one.

A snapshot is good if it is complete and no damage is known. One that lacks some mails is
incomplete: they could not be downloaded, or the server counted, but did not list them. If no
snapshot is good, the one that lacks the fewest mails is never removed.

Only snapshots that jmapfs made are removed. Such a directory has the name of a snapshot, its
description has the same date, and it belongs to the same account as the newest snapshot. It
contains nothing else, and its date is not in the future.

The rules count snapshots, hours, days, weeks, months and years, as in restic. Only periods with a
snapshot count. In each of them the newest snapshot is kept. If there are fewer periods than a rule
keeps, the rule also keeps the oldest snapshot. So the history grows until there are enough periods.
A snapshot that one rule keeps is not removed by others. Periods are in UTC, like the names of the
snapshots.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from jmapfs.errors import AlteredFilesError, JmapfsError, UsageError, storage_errors
from jmapfs.snapshot.manifest import (
    MAIL,
    METADATA_FILES,
    MISSING,
    Description,
    Origin,
    is_intact,
)
from jmapfs.snapshot.repository import CORRECT_DATES, Repository, Snapshot
from jmapfs.snapshot.verify_record import VerificationRecord

UNLIMITED: Final = -1
LAST_GOOD: Final = "last good one"
"""The reason that keeps the newest good snapshot."""
_EMAIL: Final = ".eml"
_METADATA: Final = frozenset({*METADATA_FILES, MISSING})
# Desktops and NFS put these files into directories.
_DESKTOP: Final = (".DS_Store", "._", ".nfs", ".directory", "Thumbs.db", "desktop.ini")
# Servers for files (Synology, QNAP, netatalk) put these directories into each directory.
_NAS: Final = frozenset({"@eaDir", ".@__thumb", ".AppleDouble"})
FEWEST_LACKING: Final = "lacks the fewest mails"
"""The reason that keeps an incomplete snapshot if none is complete."""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """The number that each rule keeps: at least 1, `UNLIMITED`, or None if there is no rule."""

    last: int | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None

    @property
    def has_rules(self) -> bool:
        """Whether there is any rule. A policy without rules keeps nothing."""
        return any(getattr(self, field.name) is not None for field in fields(self))


# These functions return the period of a time. Periods never decrease with time.
_PERIODS: Final[dict[str, Callable[[datetime], tuple[int, ...]]]] = {
    "last": lambda taken: taken.utctimetuple()[:6],
    "hourly": lambda taken: taken.utctimetuple()[:4],
    "daily": lambda taken: taken.utctimetuple()[:3],
    "weekly": lambda taken: taken.isocalendar()[:2],
    "monthly": lambda taken: taken.utctimetuple()[:2],
    "yearly": lambda taken: taken.utctimetuple()[:1],
}


def dates_to_keep(dates: Iterable[datetime], policy: RetentionPolicy) -> dict[datetime, list[str]]:
    """Return the dates that a policy keeps, each with its rules. The oldest date is the first.

    The dates are in UTC, and all different.
    """
    newest_first = sorted(dates, reverse=True)
    reasons: dict[datetime, list[str]] = {}
    for rule, period in _PERIODS.items():
        count = getattr(policy, rule)
        if count is None:
            continue
        chosen = _newest_of_each(newest_first, count, period)
        for taken in chosen:
            reasons.setdefault(taken, []).append(rule)
        oldest = newest_first[-1:]
        if len(chosen) != count and oldest != chosen[-1:]:
            reasons.setdefault(oldest[0], []).append(f"{rule} (oldest)")
    return dict(sorted(reasons.items()))


def _newest_of_each(
    newest_first: Sequence[datetime], count: int, period: Callable[[datetime], tuple[int, ...]]
) -> list[datetime]:
    chosen: list[datetime] = []
    for taken in newest_first:
        if len(chosen) == count:
            break
        if not chosen or period(taken) != period(chosen[-1]):
            chosen.append(taken)
    return chosen


class Verdict(msgspec.Struct, frozen=True):
    """The decision about a snapshot. Without `reasons` to keep it, the snapshot is removed.

    `damaged` is set if `jmapfs verify` has found damage, `incomplete` if the snapshot lacks mails.
    """

    date: str
    kept: bool
    reasons: tuple[str, ...]
    damaged: bool
    incomplete: bool


class LeftAlone(msgspec.Struct, frozen=True):
    """A directory that has the name of a snapshot, and the reason why jmapfs must not remove it."""

    date: str
    reason: str


class PrunePlan(msgspec.Struct, frozen=True):
    """The decisions about all snapshots in a repository, the oldest first."""

    snapshots: tuple[Verdict, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()

    @property
    def removed(self) -> list[Verdict]:
        """The snapshots to remove."""
        return [verdict for verdict in self.snapshots if not verdict.kept]


class PruneResult(NamedTuple):
    """The result of a run. `freed_bytes` is the size of the files that no other snapshot has."""

    plan: PrunePlan
    freed_bytes: int


def plan_pruning(repository: Repository, policy: RetentionPolicy) -> PrunePlan:
    """Decide which snapshots to keep, without changing anything.

    Raises:
        UsageError: the directory does not exist, or the policy has no rule.
        AlteredFilesError: all snapshots are damaged, so none may be removed.
        StorageError: the directory cannot be read.
    """
    _check_arguments(repository, policy)
    snapshots = repository.snapshots()
    if not snapshots:
        return PrunePlan()
    ours, left_alone = _partition(repository, snapshots)
    if not ours and repository.in_future(datetime.now(UTC)):
        return PrunePlan((), tuple(left_alone))
    record = VerificationRecord(repository.path)
    damaged = {one.date for one in ours if record.is_damaged(one.date)}
    lacking = {one.date: description.lacking_count for one, description in ours.items()}
    undamaged = [one for one in ours if one.date not in damaged]
    good = [one for one in undamaged if not lacking[one.date]]
    # Some servers always count more mail than they list, or have mail that can never be downloaded.
    # Their snapshots can still be pruned. Of equals, the newest comes first.
    best_first = sorted(undamaged, key=lambda one: (-lacking[one.date], one.date), reverse=True)
    # This checks the metadata, but does not read the mail.
    best = next((one for one in best_first if is_intact(one.path)), None)
    if best is None:
        raise AlteredFilesError(
            f"{repository.path}: all snapshots in it are damaged, so none is removed: take a new"
            " one first"
        )
    # The rules are applied twice: to the good snapshots, and to all. So a damaged or incomplete
    # snapshot can be kept, but never takes the place of a good one.
    reasons = dates_to_keep((one.taken for one in good or undamaged), policy)
    for taken, rules in dates_to_keep((one.taken for one in ours), policy).items():
        known = reasons.setdefault(taken, [])
        known += [rule for rule in rules if rule not in known]
    why = FEWEST_LACKING if lacking[best.date] else LAST_GOOD
    reasons.setdefault(best.taken, []).append(why)
    for one, description in list(ours.items()):
        if one.taken not in reasons and (name := _foreign_name(one, description)) is not None:
            reason = f"{name} in it is not part of the snapshot: move it to another directory"
            left_alone.append(LeftAlone(one.date, reason))
            del ours[one]
    left_alone.sort(key=lambda one: one.date)
    return PrunePlan(
        tuple(
            Verdict(
                one.date,
                one.taken in reasons,
                tuple(reasons.get(one.taken, ())),
                one.date in damaged,
                lacking[one.date] > 0,
            )
            for one in ours
        ),
        tuple(left_alone),
    )


def prune(
    repository: Repository, policy: RetentionPolicy, report: Callable[[str], None]
) -> PruneResult:
    """Remove the snapshots that the policy does not keep. Call `report` before each removal.

    Snapshots that a killed run has left half removed are removed first.

    Raises:
        BusyError: another process is using the repository.
        StorageError: something cannot be removed.
        JmapfsError: the errors of `plan_pruning`.
    """
    _check_arguments(repository, policy)
    if not repository.snapshots() and not repository.half_removed():
        # The directory has no snapshots, so write nothing there, not even a lock.
        return PruneResult(PrunePlan(), 0)
    with repository.lock():
        freed = sum(repository.remove_partial(path) for path in repository.half_removed())
        plan = plan_pruning(repository, policy)
        _update_latest(repository, plan)
        for verdict in plan.removed:
            report(verdict.date)
            freed += repository.remove_snapshot(verdict.date)
    return PruneResult(plan, freed)


def _check_arguments(repository: Repository, policy: RetentionPolicy) -> None:
    if not policy.has_rules:
        raise UsageError(
            "say what to keep, such as --keep-daily 14: all other snapshots are removed"
        )
    repository.require_directory()


def _partition(
    repository: Repository, snapshots: Sequence[Snapshot]
) -> tuple[dict[Snapshot, Description], list[LeftAlone]]:
    """Separate the newest snapshot's account from directories that must be left alone.

    Accounts that were adopted count as the same account.
    """
    ours: dict[Snapshot, Description] = {}
    left_alone: list[LeftAlone] = []
    accounts: list[Origin] = []
    now = datetime.now(UTC)
    for one in reversed(snapshots):
        if one.is_later_than(now):
            # All snapshots since then have nearly the same date, so no rule makes sense.
            reason = f"its date is in the future: run {CORRECT_DATES.format(repository.path)}"
            left_alone.append(LeftAlone(one.date, reason))
            continue
        try:
            description = one.description()
        except JmapfsError as error:
            left_alone.append(LeftAlone(one.date, str(error)))
            continue
        if description.date != one.date:
            reason = f"it was made as {description.date}, and renamed or copied"
            left_alone.append(LeftAlone(one.date, reason))
            continue
        origin = description.origin
        if not accounts or any(origin.is_same(account) for account in accounts):
            ours[one] = description
            # The address of the server may change from one snapshot to the next.
            accounts += {origin, description.adopted or origin} - set(accounts)
        else:
            left_alone.append(LeftAlone(one.date, "it belongs to another account than the newest"))
    return dict(reversed(ours.items())), left_alone[::-1]


def _foreign_name(snapshot: Snapshot, description: Description) -> str | None:
    """Return the path of something in a snapshot that jmapfs did not put there, or None.

    Earlier versions made snapshots inside of snapshots, and users may have put anything there. The
    names of mails are only counted: comparing them would take the whole manifest.
    """
    directories = {MAIL}
    for mailbox in description.mailboxes:
        parts = f"{MAIL}/{mailbox.path}".split("/")
        directories.update("/".join(parts[:end]) for end in range(1, len(parts) + 1))
    files = 0
    pending = [""]
    while pending:
        inside = pending.pop()
        with contextlib.suppress(OSError), os.scandir(snapshot.path / inside) as entries:
            for entry in entries:
                path = f"{inside}/{entry.name}" if inside else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if path in directories:
                        pending.append(path)
                    elif entry.name not in _NAS:
                        return path
                elif entry.name.startswith(_DESKTOP):
                    continue
                elif inside and entry.name.endswith(_EMAIL):
                    files += 1
                    if files > description.files:
                        return path
                elif path not in _METADATA:
                    return path
    return None


def _update_latest(repository: Repository, plan: PrunePlan) -> None:
    """Point `latest` to a kept snapshot if its target will be removed or does not exist."""
    date = repository.latest_date()
    kept = [verdict.date for verdict in plan.snapshots if verdict.kept]
    removed = {verdict.date for verdict in plan.removed}
    if date is None or not kept:
        return
    if date not in removed and (repository.path / date).exists():
        return
    with storage_errors(repository.path):
        repository.set_latest(kept[-1])
