"""What programs do with a tree again and again, everything in the kernel's caches, beside local.

On one mount, after each command was run once. The runs take milliseconds and take turns: the
median of their ratios counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench.figures import Figure, Target, at_most
from tests.bench.stage import CachedMail, Stage
from tests.bench.surroundings import mailboxes, timed, timed_grep, turns

_BUDGET_SECONDS = 30
_LEAST_RUNS = 7
_NO_READS = at_most(0)

_Timed = Callable[[Path], float]


def measure(stage: Stage) -> list[Figure]:
    """Take `runs` runs of each command, but not less than seven where there are more than one."""
    cached = stage.cached
    runs = max(stage.runs, _LEAST_RUNS) if stage.runs > 1 else 1
    figures = []
    with stage.mounted(cached.home, cached.account) as (mount, _):
        for name, run, target in _commands(cached):
            run(mount.path)
            run(cached.tree)
            ours, theirs = [], []
            before = mount.counts()
            for _ in turns(runs, _BUDGET_SECONDS):
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
    # Where the name alone would not do: each file is looked at.
    return timed("find", tree, "-size", "+8k")
