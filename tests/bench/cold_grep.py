"""A cold `grep -r` over one mailbox of 1,000 mails, by round trip, beside the one-by-one loop.

Nothing is cached anywhere. The loop downloads the same mails once at each distance: its time is
the number of round trips, and varies little. HTTP requests are those of the daemon from the
beginning of the grep to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench import one_by_one
from tests.bench.figures import Bar, Figure, at_least, at_most
from tests.bench.stage import SEARCHED, Stage
from tests.bench.surroundings import bench_directory, timed_grep, turns
from tests.cyrus import Account

_DISTANCES = (0, 0.02, 0.05, 0.1)
_BUDGET_SECONDS = 60
_TRIAL = 20

_DISTANCE_THAT_COUNTS = 0.05
_FASTER = at_least(25)
_REQUESTS = at_most(40)


@dataclass(frozen=True)
class _Grep:
    seconds: float
    requests: int


def measure(stage: Stage) -> list[Figure]:
    return [figure for distance in _DISTANCES for figure in _at(stage, distance)]


def _at(stage: Stage, distance: float) -> list[Figure]:
    where = f"{distance * 1000:.0f} ms" if distance else "loopback"
    with stage.stored.from_afar(distance) as account:
        blobs = one_by_one.blob_ids(account, SEARCHED)
        trial = one_by_one.attempt(account, one_by_one.spread(blobs, _TRIAL))
        with bench_directory() as directory:
            loop = one_by_one.download(account, blobs, directory, trial.fastest)
        greps = [_grep(stage, account, len(blobs)) for _ in turns(stage.runs, _BUDGET_SECONDS)]
    panel = f"cold grep -r over {len(blobs):,} mails"
    name = f"{panel}, {where}"
    theirs = Figure(
        f"{name}: one-by-one loop",
        "mails/s",
        (len(blobs) / loop,),
        bar=Bar(panel, where, "one-by-one loop"),
    )
    ours = Figure(
        f"{name}: jmapfs",
        "mails/s",
        tuple(len(blobs) / grep.seconds for grep in greps),
        bar=Bar(panel, where, "jmapfs"),
    )
    counts = distance == _DISTANCE_THAT_COUNTS
    return [
        theirs,
        ours,
        ours.against(theirs, f"{name}: jmapfs against the loop", _FASTER if counts else None),
        Figure(
            f"{name}: HTTP requests of jmapfs",
            "",
            tuple(grep.requests for grep in greps),
            _REQUESTS if counts else None,
        ),
    ]


def _grep(stage: Stage, account: Account, mails: int) -> _Grep:
    with stage.mounted_anew(account) as (mount, _):
        before = mount.counts()
        seconds = timed_grep(mount.path / SEARCHED)
        done = mount.counts() - before
    if done.blobs < mails:
        raise RuntimeError(f"grep has read {done.blobs} mails of {mails}")
    return _Grep(seconds, done.http["requests"])
