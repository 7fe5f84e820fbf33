"""Run the benchmarks (`scripts/bench`) and print a Markdown table.

If a measurement fails, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from tests.bench import (
    cache_shapes,
    cached_grep,
    cold_copy,
    cold_grep,
    cold_orders,
    first_listing,
    foreground,
    history,
    large_account,
    second_backup,
    snapshots,
    warm,
)
from tests.bench.disk import on_disk
from tests.bench.figures import Figure, Machine
from tests.bench.fixtures import Fixtures
from tests.bench.tables import as_json, markdown

_Measure = Callable[[Fixtures, argparse.Namespace], list[Figure]]

_MEASUREMENTS: Mapping[str, _Measure] = {
    "first-listing": lambda _, options: first_listing.measure(options.mails, options.runs),
    "large-account": lambda _, options: large_account.measure(options.large, options.runs),
    "cold-copy": lambda fixtures, _: cold_copy.measure(fixtures),
    "cold-grep": lambda fixtures, _: cold_grep.measure(fixtures),
    "cold-orders": lambda fixtures, _: cold_orders.measure(fixtures),
    "foreground": lambda fixtures, _: foreground.measure(fixtures),
    "cached-grep": lambda fixtures, _: cached_grep.measure(fixtures),
    "warm": lambda fixtures, _: warm.measure(fixtures),
    "second-backup": lambda fixtures, _: second_backup.measure(fixtures),
    "snapshots": lambda fixtures, options: snapshots.measure(fixtures, options.large),
    "cache-shapes": lambda _, options: cache_shapes.measure(options.cached, options.runs),
}

_log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    options = _options()
    # Unmount and clean up after a signal, too.
    for number in _SIGNALS:
        signal.signal(number, _end)
    names = options.only or list(_MEASUREMENTS)
    figures, failed = _measured(names, options)
    machine = Machine.this()
    print(markdown(machine, figures))
    if options.json is not None:
        options.json.write_text(as_json(machine, figures) + "\n")
    if options.plot is not None:
        _draw(figures, options.plot)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if options.record is not None:
        sizes = {name: getattr(options, name) for name in ("mails", "cached", "large", "runs")}
        history.append(options.record / "history.jsonl", machine, sizes, figures)
        _draw(figures, options.record / "figures.svg")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    for name, default, text in (
        ("--mails", 10_000, "number of mails on Cyrus"),
        ("--cached", 20_000, "number of mails that are cached"),
        ("--large", 100_000, "number of mails in the large account, which are listed only"),
    ):
        parser.add_argument(name, type=int, default=default, metavar="N", help=text)
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each measurement")
    parser.add_argument(
        "--only", action="append", choices=_MEASUREMENTS, help="run this measurement only"
    )
    parser.add_argument(
        "--cyrus-on-disk",
        action="store_true",
        help="keep the mail of the server on a disk, not in memory",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the rates to this SVG file")
    parser.add_argument(
        "--record",
        type=Path,
        nargs="?",
        const=_HERE,
        metavar="DIRECTORY",
        help="add the run to history.jsonl and plot figures.svg, by default in tests/bench",
    )
    options = parser.parse_args()
    if options.record and (options.only or options.cyrus_on_disk):
        parser.error("--record needs a run of everything, to be comparable with earlier runs")
    return options


def _measured(names: list[str], options: argparse.Namespace) -> tuple[list[Figure], list[str]]:
    """Return all figures, and the names of the measurements that failed."""
    figures: list[Figure] = []
    failed: list[str] = []
    with contextlib.ExitStack() as stack:
        fixtures = Fixtures(
            stack,
            mails=options.mails,
            cached_mails=options.cached,
            runs=options.runs,
            cyrus_directory=on_disk() if options.cyrus_on_disk else None,
        )
        for name in names:
            print(f"Measuring {name} …", file=sys.stderr, flush=True)
            start = time.monotonic()
            try:
                figures += _MEASUREMENTS[name](fixtures, options)
            except Exception:  # noqa: BLE001 - run the other measurements
                _log.exception("%s failed", name)
                failed.append(name)
            print(f"… {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        figures += fixtures.peak_memory()
    return figures, failed


def _draw(figures: list[Figure], path: Path) -> None:
    # The import takes a second.
    from tests.bench import plot

    plot.draw(figures, path)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    # A second signal must not interrupt the cleanup.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
