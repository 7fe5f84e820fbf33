"""A prune that is killed at any moment: what is kept stays whole, and the next run completes it."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

from jmapfs.snapshot.manifest import CHECKSUMS
from jmapfs.snapshot.repository import Repository
from tests.crash.forked import ForkedHome, ForkedProcess, Trap
from tests.crash.kills import Kills, each_number_of_kills
from tests.snapshot.commands import dates, everything_in
from tests.snapshot.handmade import letters, make_snapshot

SNAPSHOTS = 6
KEPT = 2
LETTERS = 40


class PruneLife:
    """Prunes copies of one repository."""

    def __init__(self, home: ForkedHome) -> None:
        self._home = home
        self._template = home.directory / "template"
        self._dest = home.directory / "dest"
        previous: Path | None = None
        for number in range(SNAPSHOTS):
            date = f"2026-11-{number + 1:02}T120000Z"
            new = letters(LETTERS, first=1 + number * 10)
            previous = make_snapshot(self._template, date, new, previous=previous)
        (self._template / "latest").symlink_to(dates(self._template)[-1])

    def begin(self) -> None:
        """Copy the repository: as links, because a prune only removes names."""
        shutil.rmtree(self._dest, ignore_errors=True)
        subprocess.run(["cp", "-al", self._template, self._dest], check=True)
        self._all = dates(self._dest)
        self._kept = {date: everything_in(self._dest / date) for date in self._all[-KEPT:]}

    def start(self, trap: Trap | None = None, *, count_calls: bool = False) -> ForkedProcess:
        arguments = ("prune", "--keep-last", str(KEPT), self._dest)
        return self._home.start(*arguments, trap=trap, count_calls=count_calls)

    def check_kept(self) -> None:
        """What is kept is as it was, and what has a date and is not kept is still whole."""
        for date, before in self._kept.items():
            assert everything_in(self._dest / date) == before
        for date in dates(self._dest):
            command = ["sha256sum", "--quiet", "--strict", "-c", CHECKSUMS]
            subprocess.run(command, cwd=self._dest / date, check=True)
        assert (self._dest / "latest").resolve().name == self._all[-1]

    def check_next(self) -> None:
        """The next run completes the work, and leaves nothing else."""
        result = self.start().result()
        assert (result.exit_code, result.stderr) == (0, ""), result
        assert {path.name for path in self._dest.iterdir()} == {
            *(".jmapfs", "latest"),
            *self._all[-KEPT:],
        }
        assert {path.name for path in (self._dest / ".jmapfs").iterdir()} == {"lock"}
        self.check_kept()
        for date in self._kept:
            assert self._home.run("verify", "--quiet", self._dest / date).exit_code == 0

    def is_half_done(self) -> bool:
        left = dates(self._dest)
        return len(left) < len(self._all) or bool(Repository(self._dest).half_removed())


@each_number_of_kills
def test_a_prune_killed_at_any_moment(home: ForkedHome, chance: random.Random, kills: int) -> None:
    life = PruneLife(home)
    life.begin()
    began = time.monotonic()
    process = life.start(count_calls=True)
    assert process.result().exit_code == 0
    every = Kills(kills, chance, process.calls(), time.monotonic() - began, core="snapshot/")
    half_done = 0

    def run(trap: Trap) -> bool:
        nonlocal half_done
        life.begin()
        killed = life.start(trap).was_trapped()
        life.check_kept()
        half_done += killed and life.is_half_done()
        life.check_next()
        return killed

    every.repeat(run)
    assert half_done > kills // 10
