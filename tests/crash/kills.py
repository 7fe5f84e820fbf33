"""What tests of kills have in common: how many there are, and which parts of the code they hit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.forked import Calls, Trap, random_trap

KILLS = 20
MANY_KILLS = 200

each_number_of_kills = pytest.mark.parametrize(
    "kills",
    [
        pytest.param(KILLS, marks=pytest.mark.timeout(300)),
        pytest.param(MANY_KILLS, marks=[pytest.mark.long, pytest.mark.timeout(3000)]),
    ],
)


class Kills:
    """Repeats a run until it was killed `wanted` times, at random points of all its modules.

    `calls` and `seconds` are those of a whole run. Half of the kills are in modules whose names
    begin with `core`.
    """

    def __init__(
        self, wanted: int, chance: random.Random, calls: Calls, seconds: float, *, core: str = ""
    ) -> None:
        self.count = 0
        self.modules: Counter[str] = Counter()
        self._wanted = wanted
        self._chance = chance
        self._calls = calls
        self._core = {name: count for name, count in calls.items() if name.startswith(core)}
        self._seconds = seconds

    def repeat(self, run: Callable[[Trap], bool]) -> None:
        """Call `run` with traps; it returns whether the process was killed, after its checks."""
        for _ in range(4 * self._wanted):
            if self.count == self._wanted:
                break
            calls = self._chance.choice([self._calls, self._core])
            trap = random_trap(self._chance, calls, self._seconds)
            # pytest shows it if the test fails.
            print("trap:", trap)
            if run(trap):
                self.count += 1
                self.modules[trap.module] += 1
        assert self.count == self._wanted
        # The kills were spread over the work.
        assert len(self.modules) > min(self._wanted, len(self._calls)) // 4, self.modules


def files_below(*directories: Path) -> set[str]:
    """Return all files below directories, by their paths."""
    return {str(path) for one in directories for path in one.rglob("*") if not path.is_dir()}
