"""Run the fault matrix and write docs/faults.md: `python -m tests.faults`.

Results are kept in a file, so that a run can be repeated for some faults or operations only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.faults.document import DOCUMENT, document
from tests.faults.faults import BY_NAME
from tests.faults.matrix import ALL_CASES, Matrix, Result
from tests.faults.operations import OPERATIONS
from tests.faults.proxy import make_certificate
from tests.mounts import commands


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--fault", action="append", choices=list(BY_NAME), metavar="NAME")
    parser.add_argument(
        "--operation", action="append", choices=[each.name for each in OPERATIONS], metavar="NAME"
    )
    parser.add_argument("--once", action="store_true", help="no permanent faults")
    parser.add_argument("--permanent", action="store_true", help="only permanent faults")
    parser.add_argument("--parallel", type=int, default=24, help="trials at the same time")
    parser.add_argument("--results", type=Path, help="a file of results to read and add to")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    options = parser.parse_args()
    # Before any thread: they share it.
    commands()
    results: dict[tuple[str, str, bool], Result] = {}
    if options.results and options.results.exists():
        known = msgspec.json.decode(options.results.read_bytes(), type=list[Result])
        results |= {result.key: result for result in known}
    faults = options.fault or BY_NAME
    modes = {
        mode
        for mode, left_out in ((False, options.permanent), (True, options.once))
        if not left_out
    }
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jmapfs-faults-") as name:
        matrix = Matrix(
            Path(name),
            make_certificate(Path(name)),
            [case for case in ALL_CASES if case[0].name in faults and case[1] in modes],
            options.operation or (),
        )
        for result in matrix.run(options.parallel):
            results[result.key] = result
            _print(result, time.monotonic() - started)
            if options.results:
                partial = options.results.with_suffix(".partial")
                partial.write_bytes(msgspec.json.encode(list(results.values())))
                partial.rename(options.results)
    if options.write:
        DOCUMENT.write_text(document(results.values()))
    sys.exit(any(result.cell.problems for result in results.values()))


def _print(result: Result, seconds: float) -> None:
    cell, mode = result.cell, "always" if result.permanent else "once"
    again = "never" if cell.recovered is None else f"{cell.recovered:.1f} s"
    print(
        f"{seconds:6.0f} {result.fault} / {cell.operation} / {mode}: {cell.what} "
        f"after {cell.seconds:.1f} s, again after {again}, {cell.injected} times",
        flush=True,
    )
    for problem in cell.problems:
        print(f"    PROBLEM: {problem}", flush=True)


if __name__ == "__main__":
    main()
