"""A cold copy of the whole tree with `rsync -a`, compared with other ways to copy the account.

Nothing is cached, the programs run in alternation, and each copy is compared with the account. The
peers are mbsync, the one-by-one loop and, as the lower bound, rsync of the same tree on the local
disk. All run on loopback and with latency. With latency, the loop copies only some hundred mails:
its rate is one mail per round trip, and the whole account would take ten minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench import mbsync, one_by_one
from tests.bench.disk import drop_caches
from tests.bench.figures import Bar, Figure, Target, at_least
from tests.bench.fixtures import Fixtures
from tests.bench.harness import rounds, timed
from tests.bench.one_by_one import Connection
from tests.bench.source_account import mail_files
from tests.cyrus import Account

_ROUND_TRIP = 0.05
_BUDGET_SECONDS = 150
_TRIAL = 100
_TRIAL_WITH_LATENCY = 10
_LOOP_WITH_LATENCY = 200

_JMAPFS = "jmapfs"
_INCLUDED = "jmapfs, mount included"
_MBSYNC = "mbsync"
_LOOP = "one-by-one loop"
_LOCAL = "local disk"


def measure(fixtures: Fixtures) -> list[Figure]:
    return [*_on_loopback(fixtures), *_with_latency(fixtures)]


def _on_loopback(fixtures: Fixtures) -> list[Figure]:
    comparison = _Comparison(fixtures, fixtures.source.account, "loopback")
    blobs = one_by_one.blob_ids(comparison.account)
    trial = one_by_one.try_connections(comparison.account, one_by_one.sample(blobs, _TRIAL))
    for _ in rounds(fixtures.runs, _BUDGET_SECONDS):
        directory = fixtures.directory()
        comparison.mbsync(directory / "mbsync")
        comparison.loop(directory / "loop", blobs, trial.fastest)
        comparison.jmapfs(directory / "jmapfs")
        comparison.local(directory / "jmapfs", directory / "local")
    targets = {_MBSYNC: at_least(2), _LOOP: at_least(2.5)}
    return [*trial.figures(comparison.where), *comparison.figures(targets)]


def _with_latency(fixtures: Fixtures) -> list[Figure]:
    with fixtures.source.with_latency(_ROUND_TRIP) as account:
        comparison = _Comparison(fixtures, account, f"{_ROUND_TRIP * 1000:.0f} ms")
        blobs = one_by_one.sample(one_by_one.blob_ids(account), _LOOP_WITH_LATENCY)
        trial = one_by_one.try_connections(account, one_by_one.sample(blobs, _TRIAL_WITH_LATENCY))
        comparison.loop(fixtures.directory() / "loop", blobs, trial.fastest)
        for _ in rounds(fixtures.runs, _BUDGET_SECONDS):
            directory = fixtures.directory()
            comparison.mbsync(directory / "mbsync")
            comparison.jmapfs(directory / "jmapfs")
    return [*trial.figures(comparison.where), *comparison.figures({_MBSYNC: at_least(1)})]


class _Comparison:
    """The rate of each program at one latency, in mails per second."""

    def __init__(self, fixtures: Fixtures, account: Account, where: str) -> None:
        self.account = account
        self.where = where
        self._fixtures = fixtures
        self._source = fixtures.source
        self._rates: dict[str, list[float]] = defaultdict(list)

    def mbsync(self, directory: Path) -> None:
        self._record(_MBSYNC, mbsync.copy(self.account, directory))
        self._source.check(mbsync.mails(directory), _MBSYNC, without_cr=True)

    def loop(self, directory: Path, blobs: Sequence[str], kind: Connection) -> None:
        seconds = one_by_one.download(self.account, blobs, directory, kind)
        self._rates[_LOOP].append(len(blobs) / seconds)
        if len(blobs) == len(self._source):
            self._source.check(mail_files(directory), _LOOP)

    def jmapfs(self, tree: Path) -> None:
        with self._fixtures.mounted_without_cache(self.account) as (mount, mounting):
            seconds = timed("rsync", "-a", f"{mount.path}/", tree)
        self._record(_JMAPFS, seconds)
        self._record(_INCLUDED, mounting + seconds)
        self._source.check(mail_files(tree), _JMAPFS)

    def local(self, tree: Path, copy: Path) -> None:
        drop_caches(tree)
        self._record(_LOCAL, timed("rsync", "-a", f"{tree}/", copy))

    def figures(self, targets: Mapping[str, Target]) -> list[Figure]:
        """Return all rates, and the ratios of jmapfs to the peers with a target.

        The targets are for the copy without the mount.
        """
        panel = f"cold copy of {len(self._source):,} mails"
        rates = {
            program: Figure(
                f"{panel}, {self.where}: {program}",
                "mails/s",
                tuple(runs),
                bar=Bar(panel, self.where, program),
            )
            for program, runs in self._rates.items()
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

    def _record(self, program: str, seconds: float) -> None:
        self._rates[program].append(len(self._source) / seconds)
