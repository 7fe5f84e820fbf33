"""`scripts/bench`, with next to nothing to measure: that it works, and clears up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.figures import Figure, Machine, Target, as_json, markdown

BENCH = Path(__file__).parents[2] / "scripts/bench"
MACHINE = Machine("A CPU", 2, "Linux 6.1", "3.11.2")


@pytest.mark.mount
@pytest.mark.cyrus
def test_it_measures_and_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    result = subprocess.run(
        [BENCH, "--mails", "20", "--large", "30", "--json", tmp_path / "figures.json"],
        env={**os.environ, "JMAPFS_PYTHON": sys.executable, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    table = result.stdout.decode().splitlines()
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert len(figures) >= 9
    assert [line.split(" | ")[0] for line in table[4:]] == [
        f"| {figure['name']}" for figure in figures
    ]
    assert all(figure["value"] > 0 for figure in figures)
    assert list(temporary.iterdir()) == []


def test_a_target_is_met_by_the_median() -> None:
    assert Figure("time", "s", (0.9, 1.0, 7.0), Target(1.0)).met
    assert Figure("speed", "emails/s", (4_999,), Target(5_000, at_least=True)).met is False
    assert Figure("size", "MB", (1,)).met is None


def test_the_table_says_what_was_hoped_for() -> None:
    figures = [
        Figure("listing", "emails/s", (4_000.4, 3_000, 5_000), Target(5_000, at_least=True)),
        Figure("`ls -lR`", "s", (1.234,), Target(4)),
        Figure("mount", "s", (0.5,)),
    ]
    assert markdown(MACHINE, figures).splitlines() == [
        "A CPU, 2 cores, Linux 6.1, Python 3.11.2",
        "",
        "| measurement | result | runs | target | met |",
        "| --- | ---: | --- | ---: | --- |",
        "| listing | 4,000 emails/s | 4,000, 3,000, 5,000 | ≥ 5,000 emails/s | **no** |",
        "| `ls -lR` | 1.23 s |  | ≤ 4 s | yes |",
        "| mount | 0.5 s |  |  |  |",
    ]


def test_json_has_every_run() -> None:
    written = json.loads(as_json(MACHINE, [Figure("time", "s", (3, 1, 2), Target(1))]))
    assert written["machine"]["cpu"] == "A CPU"
    assert written["figures"] == [
        {
            "name": "time",
            "unit": "s",
            "value": 2,
            "runs": [3, 1, 2],
            "target": {"bound": 1, "at_least": False},
            "met": False,
        }
    ]
