"""A `cat` in the foreground while a bulk reader keeps the daemon busy, in round trips.

`grep -r` reads a large mailbox of which nothing is cached. Meanwhile `cat` reads one mail of each
other mailbox, so that readahead has none of them. Only reads that end before the bulk count.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator

from tests.bench.figures import Figure, at_most
from tests.bench.fixtures import Fixtures
from tests.bench.harness import grep, rounds, timed
from tests.bench.source_account import create_source_account
from tests.cyrus import Account
from tests.mounts import Mounted

_ROUND_TRIP = 0.05
_BULK = "Bulk"
_OTHERS = tuple(f"Other{number}" for number in range(1, 11))
_BUDGET_SECONDS = 60
_DEADLINE_SECONDS = 60
_TARGET = at_most(3)

#: With fewer mails, the bulk would end before the first cat.
_LEAST_BULK = 2_000
#: The cats start after this many downloads of the bulk.
_UNDER_WAY = 20


def measure(fixtures: Fixtures) -> list[Figure]:
    bulk = max(_LEAST_BULK, fixtures.mails * 2 // 5)
    source = create_source_account(
        fixtures.cyrus, "foreground", {_BULK: bulk, **dict.fromkeys(_OTHERS, 1)}
    )
    cats: list[float] = []
    with source.with_latency(_ROUND_TRIP) as account:
        for _ in rounds(fixtures.runs, _BUDGET_SECONDS):
            cats += _cats(fixtures, account)
    if not cats:
        raise RuntimeError("the bulk ended before the first mail in the foreground")
    trips = tuple(seconds / _ROUND_TRIP for seconds in cats)
    what = f"a cat during a bulk of {bulk:,} mails, 50 ms"
    return [
        Figure(what, "round trips", trips, _TARGET),
        Figure(f"{what}: the slowest of {len(trips)}", "round trips", (max(trips),)),
    ]


def _cats(fixtures: Fixtures, account: Account) -> list[float]:
    """Return the duration in seconds of each cat that ended before the bulk."""
    counted = []
    with fixtures.mounted_without_cache(account) as (mount, _):
        mails = [next((mount.path / name).iterdir()) for name in _OTHERS]
        with _reading(mount) as bulk:
            for mail in mails:
                seconds = timed("cat", mail)
                if bulk.poll() is not None:
                    break
                counted.append(seconds)
    return counted


@contextlib.contextmanager
def _reading(mount: Mounted) -> Iterator[subprocess.Popen[bytes]]:
    """Read the bulk during the block, which begins when the read is under way."""
    with subprocess.Popen(
        grep(mount.path / _BULK),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as bulk:
        try:
            deadline = time.monotonic() + _DEADLINE_SECONDS
            while mount.counts().blobs < _UNDER_WAY and bulk.poll() is None:
                if time.monotonic() > deadline:
                    raise TimeoutError("the bulk is not under way")
                time.sleep(0.005)
            yield bulk
        finally:
            bulk.kill()
