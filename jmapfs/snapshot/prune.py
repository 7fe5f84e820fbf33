"""Removing old snapshots by rules, and never the last good one.

Only what jmapfs made is ever removed: a directory with the name of a snapshot that describes
itself as that, and is of the same account as the others. What rules keep is in `policy`, how a
snapshot goes in `removal`.

Which snapshots are kept: rules that count snapshots, hours, days, weeks, months and years.

They mean what they mean in restic. A period counts if it has a snapshot, and its newest one is
kept; periods without any are not counted. Where there are fewer periods than a rule asks for, it
also keeps the oldest snapshot of all, so that history grows until there is as much of it. What one
rule keeps no other removes. Periods are those of UTC, as the names of snapshots are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from jmapfs.errors import AlteredFilesError, JmapfsError, UsageError, storage_errors
from jmapfs.locking import ProcessLock
from jmapfs.snapshot.manifest import is_intact
from jmapfs.snapshot.remove import half_removed, remove_partial, remove_snapshot
from jmapfs.snapshot.repository import Repository, Snapshot, identity, latest_date, point_latest
from jmapfs.snapshot.verify_record import VerificationRecord

UNLIMITED: Final = -1


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How many of each to keep: one or more, `UNLIMITED`, or None where there is no such rule."""

    last: int | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None

    @property
    def has_rules(self) -> bool:
        """Tell whether there is any rule: a policy without one keeps nothing."""
        return any(getattr(self, field.name) is not None for field in fields(self))


# What two snapshots of one period have in common; it is never greater in the older one.
_PERIODS: Final[dict[str, Callable[[datetime], tuple[int, ...]]]] = {
    "last": lambda taken: taken.utctimetuple()[:6],
    "hourly": lambda taken: taken.utctimetuple()[:4],
    "daily": lambda taken: taken.utctimetuple()[:3],
    "weekly": lambda taken: taken.isocalendar()[:2],
    "monthly": lambda taken: taken.utctimetuple()[:2],
    "yearly": lambda taken: taken.utctimetuple()[:1],
}


def kept(dates: Iterable[datetime], policy: RetentionPolicy) -> dict[datetime, list[str]]:
    """Return the dates that are kept, the oldest first, each with the rules that keep it.

    All are times in UTC, and no two the same.
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


LAST_GOOD = "last good one"


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of a snapshot: it is kept for the `reasons`, or removed if there is none.

    `damaged` if `jmapfs verify` has found it so.
    """

    date: str
    kept: bool
    reasons: tuple[str, ...]
    damaged: bool


class LeftAlone(msgspec.Struct, frozen=True):
    """A directory with the name of a snapshot that is not for us to remove, and why not."""

    date: str
    reason: str


class PrunePlan(msgspec.Struct, frozen=True):
    """What becomes of all snapshots in a destination, the oldest first."""

    snapshots: tuple[Verdict, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()

    @property
    def removed(self) -> list[Verdict]:
        """Those that are to go."""
        return [verdict for verdict in self.snapshots if not verdict.kept]


class Pruned(NamedTuple):
    """What a run did; `freed_bytes` is the size of the files that were in no other snapshot."""

    plan: PrunePlan
    freed_bytes: int


def plan_pruning(destination: Repository, policy: RetentionPolicy) -> PrunePlan:
    """Find out what is to be kept, and touch nothing.

    Raises:
        UsageError: there is no such directory, or the policy has no rule.
        AlteredFilesError: no snapshot is known to be good, so none may be removed.
        StorageError: the directory cannot be read.
    """
    _require_sense(destination, policy)
    snapshots = destination.snapshots()
    if not snapshots:
        return PrunePlan()
    ours, left_alone = _ours(snapshots)
    verified = VerificationRecord.read(destination)
    damaged = {one.date for one in ours if verified.is_damaged(one.date)}
    last_good = _last_good(ours, damaged)
    if last_good is None:
        raise AlteredFilesError(
            f"{destination.path}: no snapshot in it is known to be good, so none is removed;"
            " take a new one first"
        )
    # A damaged one counts, but takes the place of no good one: that is kept as well.
    reasons = kept((one.taken for one in ours if one.date not in damaged), policy)
    for taken, rules in kept((one.taken for one in ours), policy).items():
        known = reasons.setdefault(taken, [])
        known += [rule for rule in rules if rule not in known]
    reasons.setdefault(last_good.taken, []).append(LAST_GOOD)
    return PrunePlan(
        tuple(
            Verdict(
                one.date,
                one.taken in reasons,
                tuple(reasons.get(one.taken, ())),
                one.date in damaged,
            )
            for one in ours
        ),
        tuple(left_alone),
    )


def prune(
    destination: Repository, policy: RetentionPolicy, removing: Callable[[str], None]
) -> Pruned:
    """Remove what the policy does not keep; `removing` is told each date before it goes.

    What a run left that was killed goes first.

    Raises:
        BusyError: another process is at work in the destination.
        StorageError: something cannot be removed.
        JmapfsError: as `plan_pruning`.
    """
    _require_sense(destination, policy)
    if not destination.snapshots() and not half_removed(destination):
        # Nothing of ours is here, so nothing is written here either.
        return Pruned(PrunePlan(), 0)
    what = f"the snapshots in {destination.path}"
    with ProcessLock(destination.lock_path, what, parents=True):
        freed = sum(remove_partial(path) for path in half_removed(destination))
        plan = plan_pruning(destination, policy)
        _keep_latest(destination, plan)
        for verdict in plan.removed:
            removing(verdict.date)
            freed += remove_snapshot(Snapshot(destination.path / verdict.date))
    return Pruned(plan, freed)


def _require_sense(destination: Repository, policy: RetentionPolicy) -> None:
    if not policy.has_rules:
        raise UsageError("say what to keep, such as --keep-daily 14: all else is removed")
    if not destination.path.is_dir():
        raise UsageError(f"{destination.path}: there is no such directory")


def _ours(snapshots: Sequence[Snapshot]) -> tuple[list[Snapshot], list[LeftAlone]]:
    """Tell what jmapfs made, of the account that the newest is of, from what may be anything."""
    ours: list[Snapshot] = []
    left_alone: list[LeftAlone] = []
    account = None
    for one in reversed(snapshots):
        try:
            description = one.description()
        except JmapfsError as error:
            left_alone.append(LeftAlone(one.date, str(error)))
            continue
        if description.date != one.date:
            reason = f"it was made as {description.date}, and renamed or copied"
            left_alone.append(LeftAlone(one.date, reason))
            continue
        account = account or identity(description.origin)
        if identity(description.origin) == account:
            ours.append(one)
        else:
            left_alone.append(LeftAlone(one.date, "it is of another account than the newest"))
    return ours[::-1], left_alone[::-1]


def _last_good(snapshots: Sequence[Snapshot], damaged: set[str]) -> Snapshot | None:
    """Return the newest one that is whole, as far as can be told without reading mail."""
    candidates = (one for one in reversed(snapshots) if one.date not in damaged)
    return next((one for one in candidates if is_intact(one.path)), None)


def _keep_latest(destination: Repository, plan: PrunePlan) -> None:
    """Let `latest` lead to a snapshot that stays, if it leads to one that goes or has gone."""
    date = latest_date(destination)
    stays = [verdict.date for verdict in plan.snapshots if verdict.kept]
    goes = {verdict.date for verdict in plan.removed}
    if date is None or not stays:
        return
    if date not in goes and (destination.path / date).exists():
        return
    with storage_errors(destination.path):
        point_latest(destination, stays[-1])
