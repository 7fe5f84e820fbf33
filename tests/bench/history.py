"""The history of the benchmark: a line of JSON for each recorded run, oldest first."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.figures import Figure, Machine

_ROOT = Path(__file__).parents[2]
_GIT_SECONDS = 30


def append(
    path: Path, machine: Machine, options: Mapping[str, int], figures: Sequence[Figure]
) -> None:
    """Add a run: date, commit, machine, sizes, and the value of each figure.

    The commit ends in `+` if there are uncommitted changes.
    """
    line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": vars(machine),
        "options": options,
        "figures": [
            {
                "name": figure.name,
                "value": float(f"{figure.value:.4g}"),
                "unit": figure.unit,
                "met": figure.met,
            }
            for figure in figures
        ],
    }
    with path.open("a") as history:
        history.write(json.dumps(line, ensure_ascii=False) + "\n")


def _commit() -> str:
    try:
        return _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        # Not a Git repository, for example an unpacked archive.
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_GIT_SECONDS,
        check=True,
    ).stdout.strip()
