"""A cold `grep -r` over a mailbox of 1,000 mails by latency, compared with the one-by-one loop.

Nothing is cached. The loop downloads the same mails once at each latency: its duration depends on
the number of round trips and varies little. HTTP requests are those of the daemon during the grep.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench import one_by_one
from tests.bench.figures import Bar, Figure, at_least, at_most
from tests.bench.fixtures import SEARCHED, Fixtures
from tests.bench.harness import bench_directory, rounds, timed_grep
from tests.cyrus import Account

_ROUND_TRIPS = (0, 0.02, 0.05, 0.1)
_BUDGET_SECONDS = 60
_TRIAL = 20

_TARGET_ROUND_TRIP = 0.05
_FASTER = at_least(25)
_REQUESTS = at_most(40)


@dataclass(frozen=True)
class _Grep:
    seconds: float
    requests: int


def measure(fixtures: Fixtures) -> list[Figure]:
    return [figure for round_trip in _ROUND_TRIPS for figure in _measure_at(fixtures, round_trip)]


def _measure_at(fixtures: Fixtures, round_trip: float) -> list[Figure]:
    where = f"{round_trip * 1000:.0f} ms" if round_trip else "loopback"
    with fixtures.source.with_latency(round_trip) as account:
        blobs = one_by_one.blob_ids(account, SEARCHED)
        trial = one_by_one.try_connections(account, one_by_one.sample(blobs, _TRIAL))
        with bench_directory() as directory:
            loop = one_by_one.download(account, blobs, directory, trial.fastest)
        greps = [
            _grep(fixtures, account, len(blobs)) for _ in rounds(fixtures.runs, _BUDGET_SECONDS)
        ]
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
    has_target = round_trip == _TARGET_ROUND_TRIP
    return [
        theirs,
        ours,
        ours.against(theirs, f"{name}: jmapfs against the loop", _FASTER if has_target else None),
        Figure(
            f"{name}: HTTP requests of jmapfs",
            "",
            tuple(grep.requests for grep in greps),
            _REQUESTS if has_target else None,
        ),
    ]


def _grep(fixtures: Fixtures, account: Account, mails: int) -> _Grep:
    with fixtures.mounted_without_cache(account) as (mount, _):
        before = mount.counts()
        seconds = timed_grep(mount.path / SEARCHED)
        done = mount.counts() - before
    if done.blobs < mails:
        raise RuntimeError(f"grep read {done.blobs} mails of {mails}")
    return _Grep(seconds, done.http["requests"])
