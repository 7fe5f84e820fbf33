"""A cold copy of the whole tree by `rsync -a`, beside what else would copy the account.

Nothing is cached anywhere, all take turns, and each copy is compared with what was stored. The
peers are mbsync, the one-by-one loop, and, as the floor, rsync of the same tree on the local disk.
Once on loopback and once at a distance: there the loop copies some hundred mails only, since its
rate is one mail a round trip, and all of them would take ten minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench import mbsync, one_by_one
from tests.bench.disk import drop_caches
from tests.bench.figures import Bar, Figure, Target, at_least
from tests.bench.one_by_one import Connection
from tests.bench.stage import Stage
from tests.bench.stored import files
from tests.bench.surroundings import timed, turns
from tests.cyrus import Account

_DISTANCE = 0.05
_BUDGET_SECONDS = 150
_TRIAL = 100
_TRIAL_AT_DISTANCE = 10
_LOOP_AT_DISTANCE = 200

_JMAPFS = "jmapfs"
_INCLUDED = "jmapfs, mount included"
_MBSYNC = "mbsync"
_LOOP = "one-by-one loop"
_LOCAL = "local disk"


def measure(stage: Stage) -> list[Figure]:
    return [*_nearby(stage), *_at_distance(stage)]


def _nearby(stage: Stage) -> list[Figure]:
    race = _Race(stage, stage.stored.account, "loopback")
    blobs = one_by_one.blob_ids(race.account)
    trial = one_by_one.attempt(race.account, one_by_one.spread(blobs, _TRIAL))
    for _ in turns(stage.runs, _BUDGET_SECONDS):
        directory = stage.directory()
        race.mbsync(directory / "mbsync")
        race.loop(directory / "loop", blobs, trial.fastest)
        race.jmapfs(directory / "jmapfs")
        race.local(directory / "jmapfs", directory / "local")
    targets = {_MBSYNC: at_least(2), _LOOP: at_least(2.5)}
    return [*trial.figures(race.where), *race.figures(targets)]


def _at_distance(stage: Stage) -> list[Figure]:
    with stage.stored.from_afar(_DISTANCE) as account:
        race = _Race(stage, account, f"{_DISTANCE * 1000:.0f} ms")
        blobs = one_by_one.spread(one_by_one.blob_ids(account), _LOOP_AT_DISTANCE)
        trial = one_by_one.attempt(account, one_by_one.spread(blobs, _TRIAL_AT_DISTANCE))
        race.loop(stage.directory() / "loop", blobs, trial.fastest)
        for _ in turns(stage.runs, _BUDGET_SECONDS):
            directory = stage.directory()
            race.mbsync(directory / "mbsync")
            race.jmapfs(directory / "jmapfs")
    return [*trial.figures(race.where), *race.figures({_MBSYNC: at_least(1)})]


class _Race:
    """Who copied how fast, at one distance, in mails a second."""

    def __init__(self, stage: Stage, account: Account, where: str) -> None:
        self.account = account
        self.where = where
        self._stage = stage
        self._stored = stage.stored
        self._rates: dict[str, list[float]] = defaultdict(list)

    def mbsync(self, directory: Path) -> None:
        self._count(_MBSYNC, mbsync.copy(self.account, directory))
        self._stored.check(mbsync.mails(directory), _MBSYNC, without_cr=True)

    def loop(self, directory: Path, blobs: Sequence[str], kind: Connection) -> None:
        seconds = one_by_one.download(self.account, blobs, directory, kind)
        self._rates[_LOOP].append(len(blobs) / seconds)
        if len(blobs) == len(self._stored):
            self._stored.check(files(directory), _LOOP)

    def jmapfs(self, tree: Path) -> None:
        with self._stage.mounted_anew(self.account) as (mount, mounting):
            seconds = timed("rsync", "-a", f"{mount.path}/", tree)
        self._count(_JMAPFS, seconds)
        self._count(_INCLUDED, mounting + seconds)
        self._stored.check(files(tree), _JMAPFS)

    def local(self, tree: Path, copy: Path) -> None:
        drop_caches(tree)
        self._count(_LOCAL, timed("rsync", "-a", f"{tree}/", copy))

    def figures(self, targets: Mapping[str, Target]) -> list[Figure]:
        """Return the rates of all, and what jmapfs makes of those of the peers with a target.

        The mount is no part of the copy, so the targets are for what comes after it.
        """
        panel = f"cold copy of {len(self._stored):,} mails"
        rates = {
            who: Figure(
                f"{panel}, {self.where}: {who}",
                "mails/s",
                tuple(runs),
                bar=Bar(panel, self.where, who),
            )
            for who, runs in self._rates.items()
        }
        ratios = [
            rates[ours].against(
                rates[peer],
                f"{panel}, {self.where}: {ours}, against {peer}",
                target if ours == _JMAPFS else None,
            )
            for peer, target in targets.items()
            for ours in (_JMAPFS, _INCLUDED)
        ]
        return [*rates.values(), *ratios]

    def _count(self, who: str, seconds: float) -> None:
        self._rates[who].append(len(self._stored) / seconds)
