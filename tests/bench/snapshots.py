"""Snapshots: a cold one beside what else would copy the account, and one of what is unchanged.

The cold one is by account, from the first request to the rename, with the start of Python, the
listing of an account that nothing is known of, and the wait until everything is on the disk. No
peer waits for that; mbsync as it comes (`FSync yes`) is measured too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests.bench import mbsync, one_by_one
from tests.bench.figures import Bar, Figure, at_least, at_most
from tests.bench.stage import Stage
from tests.bench.stored import files
from tests.bench.surroundings import bench_directory, bench_home, memory, turns
from tests.mounting import Home
from tests.server import server_process

_BUDGET_SECONDS = 150
_TRIAL = 100
_LOOK_SECONDS = 0.02
_PEAK = at_most(250)
_SECOND_SECONDS = at_most(20)


@dataclass(frozen=True)
class _Snapshot:
    """How many seconds it took, and what the process had in memory at its peak, in MB."""

    seconds: float
    peak: float
    path: Path


def measure(stage: Stage, unchanged: int) -> list[Figure]:
    return [*_cold(stage), *_unchanged(unchanged, stage.runs)]


def _cold(stage: Stage) -> list[Figure]:
    account = stage.stored.account
    blobs = one_by_one.blob_ids(account)
    kind = one_by_one.attempt(account, one_by_one.spread(blobs, _TRIAL)).fastest
    rates: defaultdict[str, list[float]] = defaultdict(list)
    peaks = []
    for _ in turns(stage.runs, _BUDGET_SECONDS):
        directory = stage.directory()
        for who, synced in (("mbsync", False), ("mbsync, FSync yes", True)):
            place = directory / ("synced" if synced else "mbsync")
            os.sync()
            seconds = mbsync.copy(account, place, synced=synced)
            rates[who].append(len(stage.stored) / seconds)
        os.sync()
        rates["one-by-one loop"].append(
            len(blobs) / one_by_one.download(account, blobs, directory / "loop", kind)
        )
        # It waits for all that is to be written to the file system, whoever wrote it.
        os.sync()
        with stage.home(account) as home:
            taken = _taken(home, account.url, directory / "snapshots")
        stage.stored.check(files(taken.path / "mail"), "the snapshot")
        rates["jmapfs snapshot"].append(len(stage.stored) / taken.seconds)
        peaks.append(taken.peak)
    what = f"cold snapshot of {len(stage.stored):,} mails"
    figures = {
        who: Figure(f"{what}: {who}", "mails/s", tuple(runs), bar=Bar(what, "loopback", who))
        for who, runs in rates.items()
    }
    ours = figures["jmapfs snapshot"]
    targets = {"mbsync": at_least(2), "mbsync, FSync yes": None, "one-by-one loop": at_least(2.5)}
    return [
        *figures.values(),
        *(
            ours.against(figures[peer], f"{what}, against {peer}", target)
            for peer, target in targets.items()
        ),
        Figure(f"{what}: peak memory", "MB", tuple(peaks), _PEAK),
    ]


def _unchanged(mails: int, runs: int) -> list[Figure]:
    """Take a second snapshot of an account in which nothing has changed.

    The mails are tiny and on the small server of the tests: nothing of them is fetched again.
    """
    with (
        server_process(f"large:{mails}") as server,
        bench_home("alice@example.org", "secret") as home,
        bench_directory() as destination,
    ):
        first = _taken(home, server.url, destination)
        again = [_taken(home, server.url, destination) for _ in range(runs)]
    what = f"second snapshot of {mails:,} mails, unchanged"
    return [
        Figure(what, "s", tuple(one.seconds for one in again), _SECOND_SECONDS),
        Figure(f"{what}: peak memory", "MB", tuple(one.peak for one in again), _PEAK),
        Figure(f"first snapshot of {mails:,} mails: peak memory", "MB", (first.peak,), _PEAK),
    ]


def _taken(home: Home, url: str, destination: Path) -> _Snapshot:
    """Take a snapshot.

    Raises:
        RuntimeError: that fails.
    """
    start = time.perf_counter()
    peak = 0.0
    with subprocess.Popen(
        [*home.program, "snapshot", "--quiet", url, str(destination)],
        env=home.environment,
        stdin=subprocess.DEVNULL,
    ) as process:
        # Not `ru_maxrss`, which begins with that of whoever started the process.
        while process.poll() is None:
            with contextlib.suppress(OSError, KeyError):
                peak = max(peak, memory(process.pid)[0])
            time.sleep(_LOOK_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"jmapfs snapshot ended with {process.returncode}")
    path = (destination / "latest").resolve()
    return _Snapshot(seconds, peak, path)
