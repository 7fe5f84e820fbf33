"""Cold reads of the same mail in several orders, compared with `grep -r`, at one latency.

`rg` reads with several threads, the files of several directories in turn, and backwards. Nothing is
cached. The programs run alternately. Two things are compared: the HTTP requests of the daemon, and
the time. Requests depend less on the load of the machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import Figure, at_most
from tests.bench.fixtures import SEARCHED, Fixtures
from tests.bench.harness import grep, mailboxes, ripgrep, rounds, run
from tests.cyrus import Account
from tests.mounts import Home

_ROUND_TRIP = 0.1
_BUDGET_SECONDS = 120
_AGAINST_GREP = at_most(1.5)
_GREP = "grep -r"
_RIPGREP_THREADS = (2, 8)
_REVERSED = "a reversed cat"


@dataclass(frozen=True)
class _Read:
    seconds: float
    requests: int
    mails: int


def measure(fixtures: Fixtures) -> list[Figure]:
    figures = []
    with fixtures.source.with_latency(_ROUND_TRIP) as account:
        for place in (SEARCHED, None):
            reads: defaultdict[str, list[_Read]] = defaultdict(list)
            for _ in rounds(fixtures.runs, _BUDGET_SECONDS):
                for program in (_GREP, *map(_ripgrep, _RIPGREP_THREADS), _REVERSED):
                    reads[program].append(_read(fixtures, account, program, place))
            [mails, *_] = {read.mails for runs in reads.values() for read in runs}
            directories = "one directory" if place else "several directories"
            figures += _figures(f"cold read of {mails:,} mails in {directories}, 100 ms", reads)
    return figures


def _figures(name: str, reads: dict[str, list[_Read]]) -> list[Figure]:
    seconds = {
        program: Figure(f"{name}: {program}", "s", tuple(one.seconds for one in runs))
        for program, runs in reads.items()
    }
    requests = {
        program: Figure(
            f"{name}: HTTP requests of {program}", "", tuple(one.requests for one in runs)
        )
        for program, runs in reads.items()
    }
    ratios = [
        figures[program].against(
            figures[_GREP], f"{name}: {what} of {program} against {_GREP}", _AGAINST_GREP
        )
        for what, figures in (("time", seconds), ("HTTP requests", requests))
        for program in reads
        if program != _GREP
    ]
    return [*seconds.values(), *requests.values(), *ratios]


def _ripgrep(threads: int) -> str:
    return f"rg -uu with {threads} threads"


def _read(fixtures: Fixtures, account: Account, program: str, mailbox: str | None) -> _Read:
    """Read a mailbox, or all, in a new mount."""
    with fixtures.mounted_without_cache(account) as (mount, _):
        places = [mount.path / mailbox] if mailbox else mailboxes(mount.path)
        mails = [path for place in places for path in place.rglob("*.eml")]
        before = mount.counts()
        seconds = run(*_command(program, places, mails, mount.home), codes=(0, 1)).seconds
        done = mount.counts() - before
    if done.blobs < len(mails):
        raise RuntimeError(f"{program} read {done.blobs} mails of {len(mails)}")
    return _Read(seconds, done.http["requests"], len(mails))


def _command(
    program: str, places: Sequence[Path], mails: Iterable[Path], home: Home
) -> Sequence[str | Path]:
    if program == _GREP:
        return grep(*places)
    if program == _REVERSED:
        names = home.directory / "names"
        names.write_text("\0".join(map(str, sorted(mails, reverse=True))))
        return ("xargs", "-0", "-a", names, "cat")
    [threads] = [each for each in _RIPGREP_THREADS if program == _ripgrep(each)]
    return ripgrep(threads, *places)
