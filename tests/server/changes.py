"""What changed since a state: the bounded log behind the /changes methods (RFC 8620 §5.2).

One record is one change to one object, and the state is the number of records ever written. So
every state between two operations is a valid one too, and a delta can be cut anywhere to fit
`maxChanges`, even inside an operation that touched every email of the account.

A state starts with the epoch of the log, so that states of an earlier life of the server, which
it does not remember, are not taken for its own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice


class UnknownStateError(Exception):
    """The state is not one of this log, or older than what it remembers."""


class Change(Enum):
    """What a record says about its object."""

    CREATED = "created"
    UPDATED = "updated"
    COUNTED = "counted"  # a mailbox of which only the counts changed
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
        self._limit = limit
        self._records: deque[tuple[str, Change]] = deque()
        self._dropped = 0

    @property
    def state(self) -> str:
        return self._name(self._dropped + len(self._records))

    def record(self, object_id: str, change: Change) -> None:
        self._records.append((object_id, change))
        while len(self._records) > self._limit:
            self._records.popleft()
            self._dropped += 1

    def forget(self) -> None:
        """Drop the records: every state but the current one becomes unknown."""
        self._dropped += len(self._records)
        self._records.clear()

    def since(self, state: str, max_changes: int | None = None) -> Delta:
        """Return the net changes since `state`, of at most `max_changes` objects."""
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
