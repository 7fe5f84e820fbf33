"""`scripts/bench` with tiny accounts: it works and cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import history, plot
from tests.bench.disk import on_disk
from tests.bench.figures import Bar, Figure, Machine, Target
from tests.bench.tables import as_json, markdown
from tests.waits import wait_until

BENCH = Path(__file__).parents[2] / "scripts/bench"
MACHINE = Machine("A CPU", 2, "Linux 6.1", "3.11.2")
SECONDS = 480


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory on a disk: `scripts/bench` uses no other, and the tests may run in memory."""
    with tempfile.TemporaryDirectory(dir=on_disk()) as directory:
        yield Path(directory)


def environment(temporary: Path) -> dict[str, str]:
    return {**os.environ, "JMAPFS_PYTHON": sys.executable, "TMPDIR": str(temporary)}


# --- A run of everything


@pytest.mark.mount
@pytest.mark.cyrus
@pytest.mark.timeout(600)
def test_all_measurements_run_and_leave_nothing(tmp_path: Path, temporary: Path) -> None:
    sizes = {"mails": 20, "cached": 60, "large": 30, "runs": 1}
    result = subprocess.run(
        [
            BENCH,
            *(word for name, size in sizes.items() for word in (f"--{name}", str(size))),
            *("--json", tmp_path / "figures.json", "--record", tmp_path),
        ],
        env=environment(temporary),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert list(temporary.iterdir()) == []

    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert all(len(figure["runs"]) == 1 for figure in figures if "cat during" not in figure["name"])
    table = result.stdout.decode().splitlines()
    assert [line.split(" | ")[0] for line in table[4:]] == [
        f"| {figure['name']}" for figure in figures
    ]
    _check_structure({figure["name"]: figure for figure in figures})

    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    recorded = json.loads(line)
    assert recorded["options"] == sizes
    assert [one["name"] for one in recorded["figures"]] == [one["name"] for one in figures]
    drawn = (tmp_path / "figures.svg").read_text()
    for text in ("cold copy of 20 mails", "cold grep -r over 2 mails", "mbsync", "100 ms"):
        assert text in drawn


def _check_structure(figures: dict[str, dict[str, Any]]) -> None:
    """Check that all workloads have their peers, and the counts independent of the machine."""
    ratios = {
        "cold copy of 20 mails, loopback: jmapfs, against mbsync": (2, True),
        "cold copy of 20 mails, loopback: jmapfs, against one-by-one loop": (2.5, True),
        "cold copy of 20 mails, 50 ms: jmapfs, against mbsync": (1, True),
        "cold grep -r over 2 mails, 50 ms: jmapfs against the loop": (25, True),
        "grep -r over 60 mails in the disk cache, page cache dropped: jmapfs against local": (
            1.5,
            False,
        ),
        "grep -r over 60 mails, warm: jmapfs against local": (12, False),
        "find over 60 mails, warm: jmapfs against local": (2, False),
        "find -size +8k over 60 mails, warm: jmapfs against local": (2, False),
        "ls -lR over 60 mails, warm: jmapfs against local": (2, False),
        "rsync -an over 60 mails, warm: jmapfs against local": (2, False),
    }
    for name, (bound, at_least) in ratios.items():
        figure = figures[name]
        assert figure["target"] == {"bound": bound, "at_least": at_least}
        ours, theirs = figure["sides"]
        assert figure["value"] == ours["value"] / theirs["value"] > 0

    counts = {
        "grep -r over 60 mails, warm: READs": 0,
        "second rsync -a of 60 mails: READs": 0,
        "second rsync -a of 60 mails: blobs downloaded": 0,
        "second borg create of 60 mails: mails read": 0,
        "second borg create of 60 mails: blobs downloaded": 0,
    }
    assert {name: figures[name]["value"] for name in counts} == counts
    for where in ("loopback", "20 ms", "50 ms", "100 ms"):
        requests = figures[f"cold grep -r over 2 mails, {where}: HTTP requests of jmapfs"]
        assert 1 <= requests["value"] <= 2 + 2

    cats = figures["a cat during a bulk of 2,000 mails, 50 ms"]
    # A cat of an uncached mail takes at least one round trip.
    assert min(cats["runs"]) >= 1
    assert 0 < figures["peak memory of a daemon in all of it"]["value"] < 250


@pytest.mark.mount
@pytest.mark.cyrus
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_leaves_nothing(temporary: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [BENCH, "--only", "warm", "--cached", "1000"],
        env=environment(temporary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as bench:
        # Then Cyrus, a mount and a reader are running.
        wait_until(
            lambda: any(temporary.glob("*/mail/Archive")) or bench.poll() is not None, SECONDS
        )
        assert bench.poll() is None
        bench.send_signal(number)
        assert bench.wait(SECONDS) == 128 + number
    assert list(temporary.iterdir()) == []


def test_only_a_complete_run_is_recorded(tmp_path: Path, temporary: Path) -> None:
    result = subprocess.run(
        [BENCH, "--record", tmp_path, "--only", "warm"],
        env=environment(temporary),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 2
    assert b"everything" in result.stderr


# --- Figures


def test_a_target_is_met_by_the_median() -> None:
    assert Figure("time", "s", (0.9, 1.0, 7.0), Target(1.0)).met
    assert Figure("speed", "emails/s", (4_999,), Target(5_000, at_least=True)).met is False
    assert Figure("size", "MB", (1,)).met is None


def test_alternating_runs_are_compared_in_pairs() -> None:
    # The machine was busy during the second run of both.
    ours = Figure("ours", "s", (2, 20, 2.2))
    theirs = Figure("theirs", "s", (1, 10, 1))
    ratio = ours.against(theirs, "ours against theirs", Target(2))
    assert list(ratio.runs) == [2, 2, 2.2]
    assert ratio.met
    assert ratio.sides == (ours, theirs)


def test_a_single_run_of_a_peer_is_compared_with_the_median() -> None:
    ratio = Figure("", "s", (2, 9, 4)).against(Figure("", "s", (2,)), "")
    assert ratio.runs == (2,)


def test_the_table_shows_results_and_targets() -> None:
    figures = [
        Figure("listing", "emails/s", (4_000.4, 3_000, 5_000), Target(5_000, at_least=True)),
        Figure("`ls -lR`", "s", (1.234,), Target(4)),
        Figure("mount", "s", (0.5,)),
        Figure("READs", "", (0,), Target(0)),
        Figure("cat", "round trips", (1, 2, 3, 4, 5, 6.5)),
        Figure("", "s", (3,)).against(Figure("", "s", (2,)), "find", Target(2)),
    ]
    assert markdown(MACHINE, figures).splitlines() == [
        "A CPU, 2 cores, Linux 6.1, Python 3.11.2",
        "",
        "| measurement | result | runs | target | met |",
        "| --- | ---: | --- | ---: | --- |",
        "| listing | 4,000 emails/s | 4,000, 3,000, 5,000 | ≥ 5,000 emails/s | **no** |",
        "| `ls -lR` | 1.23 s |  | ≤ 4 s | yes |",
        "| mount | 0.5 s |  |  |  |",
        "| READs | 0 |  | ≤ 0 | yes |",
        "| cat | 3.5 round trips | 6 runs, 1 to 6.5 |  |  |",
        "| find | 1.5 × (3 to 2 s) |  | ≤ 2 × | yes |",
    ]


def test_json_contains_every_run() -> None:
    ours, theirs = Figure("ours", "s", (3, 1, 2)), Figure("theirs", "s", (1, 1, 1))
    written = json.loads(as_json(MACHINE, [ours.against(theirs, "ratio", Target(1))]))
    assert written["machine"]["cpu"] == "A CPU"
    assert written["figures"] == [
        {
            "name": "ratio",
            "unit": "×",
            "value": 2,
            "runs": [3, 1, 2],
            "target": {"bound": 1, "at_least": False},
            "met": False,
            "sides": [
                {"name": "ours", "unit": "s", "value": 2, "runs": [3, 1, 2]},
                {"name": "theirs", "unit": "s", "value": 1, "runs": [1, 1, 1]},
            ],
        }
    ]


def test_each_run_adds_a_line_to_the_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for value in (1.23456, 2):
        history.append(path, MACHINE, {"mails": 10}, [Figure("time", "s", (value,), Target(2))])
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    assert [run["figures"][0]["value"] for run in runs] == [1.235, 2]
    assert runs[0].keys() == {"date", "commit", "machine", "options", "figures"}
    assert runs[0]["figures"] == [{"name": "time", "value": 1.235, "unit": "s", "met": True}]


BARS = [
    Figure("", "mails/s", (rate,), bar=Bar("cold copy", where, who))
    for where, who, rate in (
        ("loopback", "mbsync", 1_200),
        ("loopback", "jmapfs", 2_500),
        ("50 ms", "jmapfs", 1_300),
    )
]


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load the fonts of matplotlib, which keeps their files open."""
    plot.draw(BARS, tmp_path_factory.mktemp("fonts") / "first.svg")


@pytest.mark.usefixtures("fonts")
def test_the_same_figures_give_the_same_plot(tmp_path: Path) -> None:
    one, other = tmp_path / "one.svg", tmp_path / "other.svg"
    assert plot.draw(BARS, one)
    assert plot.draw(BARS, other)
    assert one.read_bytes() == other.read_bytes()
    text = one.read_text()
    assert all(word in text for word in ("loopback", "50 ms", "mbsync", "2,500"))
    assert not plot.draw([Figure("time", "s", (1,))], tmp_path / "none.svg")
