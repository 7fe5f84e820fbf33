"""`grep -r` over mail in the disk cache, page cache dropped, beside the same tree on the disk.

Each run is on a fresh mount: the daemon has nothing in memory, the kernel neither. What is read
is then on the disk for both, here in the cache's few files, there in a file a mail.
"""

from __future__ import annotations

from tests.bench.disk import drop_caches
from tests.bench.figures import Figure, at_most
from tests.bench.stage import Stage
from tests.bench.surroundings import mailboxes, timed_grep, turns

_BUDGET_SECONDS = 60
_TARGET = at_most(1.5)


def measure(stage: Stage) -> list[Figure]:
    cached = stage.cached
    ours, theirs = [], []
    for _ in turns(stage.runs, _BUDGET_SECONDS):
        with stage.mounted(cached.home, cached.account) as (mount, _):
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
