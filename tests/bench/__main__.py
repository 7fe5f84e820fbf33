"""The benchmark as a command: `scripts/bench`. It prints a Markdown table."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.bench import first_listing, large_account
from tests.bench.figures import Figure, Machine, as_json, markdown


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "--mails", type=int, default=10_000, metavar="N", help="how many the real Cyrus has"
    )
    parser.add_argument(
        "--large", type=int, default=100_000, metavar="N", help="how many the large account has"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    measurements: dict[str, Callable[[argparse.Namespace], list[Figure]]] = {
        "first-listing": lambda options: first_listing.measure(options.mails),
        "large-account": lambda options: large_account.measure(options.large),
    }
    parser.add_argument(
        "--only", action="append", choices=measurements, help="leave out the others"
    )
    options = parser.parse_args()
    # Every end is to unmount and to remove.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    figures: list[Figure] = []
    for name in options.only or measurements:
        print(f"Measuring {name} …", file=sys.stderr, flush=True)
        figures += measurements[name](options)
    machine = Machine.this()
    print(markdown(machine, figures))
    if options.json is not None:
        options.json.write_text(as_json(machine, figures) + "\n")


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
