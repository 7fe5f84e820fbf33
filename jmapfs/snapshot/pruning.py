"""Removing old snapshots by rules, and never the last good one.

Only what jmapfs made is ever removed: a directory with the name of a snapshot that describes
itself as that, and is of the same account as the others. What rules keep is in `policy`, how a
snapshot goes in `removal`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from jmapfs.errors import AlteredFilesError, JmapfsError, UsageError, storage_errors
from jmapfs.lock import ProcessLock
from jmapfs.snapshot.destination import Destination, Snapshot, identity
from jmapfs.snapshot.latest import latest_date, point_latest
from jmapfs.snapshot.manifest import is_intact
from jmapfs.snapshot.policy import Policy, kept
from jmapfs.snapshot.removal import half_removed, remove_partial, remove_snapshot
from jmapfs.snapshot.verified import Verified

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


class Plan(msgspec.Struct, frozen=True):
    """What becomes of all snapshots in a destination, the oldest first."""

    snapshots: tuple[Verdict, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()

    @property
    def removed(self) -> list[Verdict]:
        """Those that are to go."""
        return [verdict for verdict in self.snapshots if not verdict.kept]


class Pruned(NamedTuple):
    """What a run did; `freed_bytes` is the size of the files that were in no other snapshot."""

    plan: Plan
    freed_bytes: int


def plan_pruning(destination: Destination, policy: Policy) -> Plan:
    """Find out what is to be kept, and touch nothing.

    Raises:
        UsageError: there is no such directory, or the policy has no rule.
        AlteredFilesError: no snapshot is known to be good, so none may be removed.
        StorageError: the directory cannot be read.
    """
    _require_sense(destination, policy)
    snapshots = destination.snapshots()
    if not snapshots:
        return Plan()
    ours, left_alone = _ours(snapshots)
    verified = Verified.read(destination)
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
    return Plan(
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


def prune(destination: Destination, policy: Policy, removing: Callable[[str], None]) -> Pruned:
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
        return Pruned(Plan(), 0)
    what = f"the snapshots in {destination.path}"
    with ProcessLock(destination.lock_path, what, parents=True):
        freed = sum(remove_partial(path) for path in half_removed(destination))
        plan = plan_pruning(destination, policy)
        _keep_latest(destination, plan)
        for verdict in plan.removed:
            removing(verdict.date)
            freed += remove_snapshot(Snapshot(destination.path / verdict.date))
    return Pruned(plan, freed)


def _require_sense(destination: Destination, policy: Policy) -> None:
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


def _keep_latest(destination: Destination, plan: Plan) -> None:
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
