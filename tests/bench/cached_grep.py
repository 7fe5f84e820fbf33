"""`grep -r` over mail in the disk cache, compared with the same tree on the local disk.

Each run has a new mount and an empty page cache, so that both read from the disk: jmapfs the few
files of its cache, grep on the local disk one file for each mail.
"""

from __future__ import annotations

from tests.bench.disk import drop_caches
from tests.bench.figures import Figure, at_most
from tests.bench.fixtures import Fixtures
from tests.bench.harness import mailboxes, rounds, timed_grep

_BUDGET_SECONDS = 60
_TARGET = at_most(1.5)


def measure(fixtures: Fixtures) -> list[Figure]:
    cached = fixtures.cached
    ours, theirs = [], []
    for _ in rounds(fixtures.runs, _BUDGET_SECONDS):
        with fixtures.mounted(cached.home, cached.account) as (mount, _):
            before = mount.counts()
            drop_caches(cached.home.cache)
            ours.append(timed_grep(*mailboxes(mount.path)))
            if blobs := (mount.counts() - before).blobs:
                raise RuntimeError(f"{blobs} mails were not cached")
        drop_caches(cached.tree)
        theirs.append(timed_grep(*mailboxes(cached.tree)))
    what = f"grep -r over {cached.mails:,} mails in the disk cache, page cache dropped"
    jmapfs = Figure(f"{what}: jmapfs", "s", tuple(ours))
    local = Figure(f"{what}: the same tree on the local disk", "s", tuple(theirs))
    return [jmapfs, local, jmapfs.against(local, f"{what}: jmapfs against local", _TARGET)]
