"""Commands on a tree that is in the caches of the kernel, compared with the local disk.

Each command runs once before the measurement on the same mount. The runs take milliseconds, in
alternation; the result is the median of their ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench.figures import Figure, Target, at_most
from tests.bench.fixtures import CachedMail, Fixtures
from tests.bench.harness import mailboxes, rounds, timed, timed_grep

_BUDGET_SECONDS = 30
_LEAST_RUNS = 7
_NO_READS = at_most(0)

_Timed = Callable[[Path], float]


def measure(fixtures: Fixtures) -> list[Figure]:
    """Run each command `runs` times; if that is more than once, at least seven times."""
    cached = fixtures.cached
    runs = max(fixtures.runs, _LEAST_RUNS) if fixtures.runs > 1 else 1
    figures = []
    with fixtures.mounted(cached.home, cached.account) as (mount, _):
        for name, run, target in _commands(cached):
            run(mount.path)
            run(cached.tree)
            ours, theirs = [], []
            before = mount.counts()
            for _ in rounds(runs, _BUDGET_SECONDS):
                ours.append(run(mount.path))
                theirs.append(run(cached.tree))
            reads = (mount.counts() - before).reads
            what = f"{name} over {cached.mails:,} mails, warm"
            jmapfs = Figure(f"{what}: jmapfs", "s", tuple(ours))
            local = Figure(f"{what}: local", "s", tuple(theirs))
            figures.append(jmapfs.against(local, f"{what}: jmapfs against local", target))
            if run is _grep:
                figures.append(Figure(f"{what}: READs", "", (reads,), _NO_READS))
    return figures


def _commands(cached: CachedMail) -> list[tuple[str, _Timed, Target]]:
    def rsync(tree: Path) -> float:
        return timed("rsync", "-an", f"{tree}/", cached.second_tree)

    return [
        ("grep -r", _grep, at_most(12)),
        ("find", partial(timed, "find"), at_most(2)),
        ("find -size +8k", _find_large, at_most(2)),
        ("ls -lR", partial(timed, "ls", "-lR"), at_most(2)),
        ("rsync -an", rsync, at_most(2)),
    ]


def _grep(tree: Path) -> float:
    return timed_grep(*mailboxes(tree))


def _find_large(tree: Path) -> float:
    # The size requires a stat of each file.
    return timed("find", tree, "-size", "+8k")
