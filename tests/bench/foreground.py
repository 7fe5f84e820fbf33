"""One `cat` in the foreground while a bulk reader keeps the daemon busy, in round trips.

`grep -r` reads a large mailbox, of which nothing is cached. Meanwhile single mails of other
mailboxes are read, one of each, so that none of them was read ahead. Only those count that were
read before the bulk was.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator

from tests.bench.figures import Figure, at_most
from tests.bench.stage import Stage
from tests.bench.stored import store
from tests.bench.surroundings import grep, timed, turns
from tests.cyrus import Account
from tests.mounting import Mounted

_DISTANCE = 0.05
_BULK = "Bulk"
_OTHERS = tuple(f"Other{number}" for number in range(1, 11))
_BUDGET_SECONDS = 60
_DEADLINE_SECONDS = 60
_TARGET = at_most(3)

#: With fewer the bulk would be read before the first cat is.
_LEAST_BULK = 2_000
#: From then on there is something to be in the way of.
_UNDER_WAY = 20


def measure(stage: Stage) -> list[Figure]:
    bulk = max(_LEAST_BULK, stage.mails * 2 // 5)
    stored = store(stage.cyrus, "foreground", {_BULK: bulk, **dict.fromkeys(_OTHERS, 1)})
    cats: list[float] = []
    with stored.from_afar(_DISTANCE) as account:
        for _ in turns(stage.runs, _BUDGET_SECONDS):
            cats += _cats(stage, account)
    if not cats:
        raise RuntimeError("the bulk was read before the first mail in the foreground")
    trips = tuple(seconds / _DISTANCE for seconds in cats)
    what = f"a cat during a bulk of {bulk:,} mails, 50 ms"
    return [
        Figure(what, "round trips", trips, _TARGET),
        Figure(f"{what}: the slowest of {len(trips)}", "round trips", (max(trips),)),
    ]


def _cats(stage: Stage, account: Account) -> list[float]:
    """Return how many seconds each cat took that ended before the bulk did."""
    counted = []
    with stage.mounted_anew(account) as (mount, _):
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
    """Have the bulk being read, well under way, and no longer than the block lasts."""
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
