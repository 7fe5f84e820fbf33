"""Snapshots: a cold one, compared with other ways to copy the account, and an unchanged one.

The cold snapshot is of an account, without an index. Its time includes the start of Python, the
listing, and the sync of all files. The peers do not sync; mbsync with its default `FSync yes` is
measured as well.
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
from tests.bench.fixtures import Fixtures
from tests.bench.harness import bench_directory, bench_home, memory, rounds
from tests.bench.source_account import mail_files
from tests.mounts import Home
from tests.server import server_process

_BUDGET_SECONDS = 150
_TRIAL = 100
_POLL_SECONDS = 0.02
_PEAK = at_most(250)
_SECOND_SECONDS = at_most(20)


@dataclass(frozen=True)
class _Snapshot:
    """The duration in seconds, the peak memory in MB, and the path."""

    seconds: float
    peak: float
    path: Path


def measure(fixtures: Fixtures, unchanged: int) -> list[Figure]:
    return [*_cold(fixtures), *_unchanged(unchanged, fixtures.runs)]


def _cold(fixtures: Fixtures) -> list[Figure]:
    account = fixtures.source.account
    blobs = one_by_one.blob_ids(account)
    kind = one_by_one.try_connections(account, one_by_one.sample(blobs, _TRIAL)).fastest
    rates: defaultdict[str, list[float]] = defaultdict(list)
    peaks = []
    for _ in rounds(fixtures.runs, _BUDGET_SECONDS):
        directory = fixtures.directory()
        for peer, synced in (("mbsync", False), ("mbsync, FSync yes", True)):
            copy = directory / ("synced" if synced else "mbsync")
            os.sync()
            seconds = mbsync.copy(account, copy, synced=synced)
            rates[peer].append(len(fixtures.source) / seconds)
        os.sync()
        rates["one-by-one loop"].append(
            len(blobs) / one_by_one.download(account, blobs, directory / "loop", kind)
        )
        # The snapshot syncs the file system, which includes the files of other programs.
        os.sync()
        with fixtures.home(account) as home:
            snapshot = _take_snapshot(home, account.url, directory / "snapshots")
        fixtures.source.check(mail_files(snapshot.path / "mail"), "the snapshot")
        rates["jmapfs snapshot"].append(len(fixtures.source) / snapshot.seconds)
        peaks.append(snapshot.peak)
    name = f"cold snapshot of {len(fixtures.source):,} mails"
    figures = {
        peer: Figure(f"{name}: {peer}", "mails/s", tuple(runs), bar=Bar(name, "loopback", peer))
        for peer, runs in rates.items()
    }
    ours = figures["jmapfs snapshot"]
    targets = {"mbsync": at_least(2), "mbsync, FSync yes": None, "one-by-one loop": at_least(2.5)}
    return [
        *figures.values(),
        *(
            ours.against(figures[peer], f"{name}, against {peer}", target)
            for peer, target in targets.items()
        ),
        Figure(f"{name}: peak memory", "MB", tuple(peaks), _PEAK),
    ]


def _unchanged(mails: int, runs: int) -> list[Figure]:
    """Take a second snapshot of an unchanged account.

    Its mails are tiny and on the test server: none is downloaded again.
    """
    with (
        server_process(f"large:{mails}") as server,
        bench_home("alice@example.org", "secret") as home,
        bench_directory() as destination,
    ):
        first = _take_snapshot(home, server.url, destination)
        again = [_take_snapshot(home, server.url, destination) for _ in range(runs)]
    name = f"second snapshot of {mails:,} mails, unchanged"
    return [
        Figure(name, "s", tuple(one.seconds for one in again), _SECOND_SECONDS),
        Figure(f"{name}: peak memory", "MB", tuple(one.peak for one in again), _PEAK),
        Figure(f"first snapshot of {mails:,} mails: peak memory", "MB", (first.peak,), _PEAK),
    ]


def _take_snapshot(home: Home, url: str, destination: Path) -> _Snapshot:
    """Take a snapshot.

    Raises:
        RuntimeError: the command fails.
    """
    start = time.perf_counter()
    peak = 0.0
    with subprocess.Popen(
        [*home.program, "snapshot", "--quiet", url, str(destination)],
        env=home.environment,
        stdin=subprocess.DEVNULL,
    ) as process:
        # `ru_maxrss` starts with the value of the parent process.
        while process.poll() is None:
            with contextlib.suppress(OSError, KeyError):
                peak = max(peak, memory(process.pid)[0])
            time.sleep(_POLL_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"jmapfs snapshot ended with {process.returncode}")
    path = (destination / "latest").resolve()
    return _Snapshot(seconds, peak, path)
