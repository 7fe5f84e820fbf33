"""A set of half a million things that takes a few megabytes: of each it has the hash only.

Two things of the same hash are one to it. Hashes have 64 bits, and those of text and bytes are
other ones in each process, so nobody can choose names that clash.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import Final

_FIRST_SLOTS: Final = 1 << 10
_EMPTY: Final = 0


class Hashes:
    """A set that can be added to: an array of slots, each thing in the first free one from its."""

    def __init__(self) -> None:
        self._count = 0
        self._slots = _slots(_FIRST_SLOTS)

    def add(self, thing: Hashable) -> bool:
        """Add a thing; return whether it was not there before."""
        value = _value(thing)
        slot = self._slot(value)
        if self._slots[slot] == value:
            return False
        self._slots[slot] = value
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            self._grow()
        return True

    def __contains__(self, thing: Hashable) -> bool:
        value = _value(thing)
        return self._slots[self._slot(value)] == value

    def __len__(self) -> int:
        return self._count

    def _slot(self, value: int) -> int:
        slots = self._slots
        last = len(slots) - 1
        slot = value & last
        while slots[slot] != _EMPTY and slots[slot] != value:
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        before, self._slots = self._slots, _slots(2 * len(self._slots))
        for value in before:
            if value != _EMPTY:
                self._slots[self._slot(value)] = value


def _slots(count: int) -> array[int]:
    return array("q", bytes(8 * count))


def _value(thing: Hashable) -> int:
    return hash(thing) or 1
