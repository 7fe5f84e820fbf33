"""The time and memory to mount and list a large account that is already indexed.

Its mails are tiny and on the test server: this measures the index and the kernel only.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.figures import Figure, Target
from tests.bench.harness import bench_home, memory, timed, timed_mount, unmount
from tests.mounts import Home
from tests.server import server_process

_DEADLINE_SECONDS = 900
_MEGABYTES = Target(150)


@dataclass(frozen=True)
class _Run:
    mounted: float
    first: float
    second: float
    peak: float
    current: float


def measure(mails: int, runs: int) -> list[Figure]:
    """Index an account of `mails` emails once, then mount and list it `runs` times."""
    with (
        server_process(f"large:{mails}") as server,
        bench_home("alice@example.org", "secret") as home,
    ):
        mount, seconds = timed_mount(home, server.url, _DEADLINE_SECONDS)
        peak, _ = memory(mount.ask_status().pid)
        unmount(mount)
        measured = [_run(home, server.url) for _ in range(runs)]
    what = f"{mails:,} emails, indexed"
    return [
        Figure(
            f"{what}: `jmapfs mount` and `ls` of its root",
            "s",
            tuple(run.mounted for run in measured),
            Target(2),
        ),
        Figure(f"{what}: first `ls -lR`", "s", tuple(run.first for run in measured), Target(4)),
        Figure(f"{what}: second `ls -lR`", "s", tuple(run.second for run in measured), Target(1.5)),
        Figure(f"{what}: peak memory", "MB", tuple(run.peak for run in measured), _MEGABYTES),
        Figure(
            f"{what}: memory at the end", "MB", tuple(run.current for run in measured), _MEGABYTES
        ),
        Figure(f"{mails:,} emails, not indexed: `jmapfs mount`", "s", (seconds,)),
        Figure(f"{mails:,} emails, not indexed: peak memory", "MB", (peak,), _MEGABYTES),
    ]


def _run(home: Home, url: str) -> _Run:
    mount, mounted = timed_mount(home, url, _DEADLINE_SECONDS)
    first = timed("ls", "-lR", mount.path)
    second = timed("ls", "-lR", mount.path)
    peak, current = memory(mount.ask_status().pid)
    unmount(mount)
    return _Run(mounted, first, second, peak, current)
