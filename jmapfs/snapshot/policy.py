"""Which snapshots are kept: rules that count snapshots, hours, days, weeks, months and years.

They mean what they mean in restic. A period counts if it has a snapshot, and its newest one is
kept; periods without any are not counted. Where there are fewer periods than a rule asks for, it
also keeps the oldest snapshot of all, so that history grows until there is as much of it. What one
rule keeps no other removes. Periods are those of UTC, as the names of snapshots are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final

UNLIMITED: Final = -1


@dataclass(frozen=True, slots=True)
class Policy:
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


def kept(dates: Iterable[datetime], policy: Policy) -> dict[datetime, list[str]]:
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
