"""The bounded change log behind the /changes methods (RFC 8620 §5.2).

A record is one change to one object, and the state is the number of records ever written. A delta
can therefore end at any record to respect `maxChanges`, even within an operation that changed
every email.

A state starts with the epoch of the log, which tells it from the states of an earlier server
process.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice


class UnknownStateError(Exception):
    """The state is not from this log, or older than its first record."""


class Change(Enum):
    """The kind of change to an object."""

    CREATED = "created"
    UPDATED = "updated"
    COUNTED = "counted"  # only the counts of a mailbox changed
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class Delta:
    """The net changes between two states."""

    old_state: str
    new_state: str
    has_more: bool
    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    destroyed: list[str] = field(default_factory=list)
    counts_only: bool = False


class ChangeLog:
    """The last `limit` changes to the objects of one type in one account."""

    def __init__(self, epoch: str, limit: int) -> None:
        self._epoch = epoch
        self.limit = limit
        self._records: deque[tuple[str, Change]] = deque()
        self._dropped = 0

    @property
    def state(self) -> str:
        return self._name(self._dropped + len(self._records))

    def record(self, object_id: str, change: Change) -> None:
        self._records.append((object_id, change))
        while len(self._records) > self.limit:
            self._records.popleft()
            self._dropped += 1

    def forget(self) -> None:
        """Drop the records: every state except the current one becomes unknown."""
        self._dropped += len(self._records)
        self._records.clear()

    def since(self, state: str, max_changes: int | None = None) -> Delta:
        """Return the net changes since `state` to at most `max_changes` objects.

        Raises:
            UnknownStateError: the log does not reach back to that state.
        """
        first = self._number(state)
        net: dict[str, Change] = {}
        position = first
        for object_id, change in islice(self._records, first - self._dropped, None):
            known = net.get(object_id)
            if known is None and max_changes is not None and len(net) >= max_changes:
                break
            position += 1
            if known is Change.CREATED:
                if change is Change.DESTROYED:
                    del net[object_id]
            elif not (known is Change.UPDATED and change is Change.COUNTED):
                net[object_id] = change
        updated = {i: c for i, c in net.items() if c in {Change.UPDATED, Change.COUNTED}}
        return Delta(
            old_state=state,
            new_state=self._name(position),
            has_more=position < self._dropped + len(self._records),
            created=[i for i, c in net.items() if c is Change.CREATED],
            updated=list(updated),
            destroyed=[i for i, c in net.items() if c is Change.DESTROYED],
            counts_only=bool(updated) and Change.UPDATED not in updated.values(),
        )

    def _name(self, number: int) -> str:
        return f"{self._epoch}-{number}"

    def _number(self, state: str) -> int:
        epoch, _, digits = state.rpartition("-")
        if epoch != self._epoch or not digits.isdecimal():
            raise UnknownStateError(state)
        number = int(digits)
        if not self._dropped <= number <= self._dropped + len(self._records):
            raise UnknownStateError(state)
        return number
