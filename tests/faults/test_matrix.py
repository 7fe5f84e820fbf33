"""No fault of a network or server makes jmapfs serve wrong bytes, hang, crash or stay broken.

Some faults are tried here, and all of them with `--long`. `docs/faults.md` has the outcome of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from tests.faults.document import DOCUMENT, PROBLEMS, document, expected_keys
from tests.faults.faults import BY_NAME, FAULTS
from tests.faults.matrix import Matrix, Result
from tests.faults.operations import GROUPS, OPERATIONS, Cell, Operation
from tests.faults.proxy import make_certificate

# Those that need no long wait; of each kind of fault at least one.
QUICK = {
    "once": (
        "refused",
        "reset",
        "cut in the body",
        "cut last byte",
        "garbled on the wire",
        "429, no date",
        "502",
        "bad chunks",
        "truncated gzip",
        "portal",
        "empty 200",
    ),
    "permanently": (
        "garbled byte",
        "401",
        "403",
        "404",
        "redirect elsewhere",
        "longer body",
        "no length",
        "not gzip",
    ),
}
PARALLEL = 8


def problems(results: Iterable[Result]) -> list[str]:
    return [f"{result.key}: {each}" for result in results for each in result.cell.problems]


@pytest.mark.mount
@pytest.mark.parametrize(
    "group", [group for _, group in GROUPS], ids=[run.__name__ for run, _ in GROUPS]
)
def test_some_faults(tmp_path: Path, group: Sequence[Operation]) -> None:
    cases = [
        (BY_NAME[name], mode == "permanently") for mode, names in QUICK.items() for name in names
    ]
    operations = [operation.name for operation in group]
    matrix = Matrix(tmp_path, make_certificate(tmp_path), cases, operations)
    results = list(matrix.run(PARALLEL))
    assert problems(results) == []
    assert len(results) == len(cases) * len(operations)
    assert [result.key for result in results if not result.cell.injected] == []


@pytest.mark.mount
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_all_faults(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, make_certificate(tmp_path))
    results = list(matrix.run(3 * PARALLEL))
    assert problems(results) == []
    assert {result.key for result in results} == expected_keys()


def test_the_document_has_each_cell() -> None:
    text = DOCUMENT.read_text()
    assert "**" not in text, "a cell that was not run, or has a problem"
    for operation in OPERATIONS:
        table = text.partition(f"\n## {operation.name.capitalize()}\n")[2].partition("\n## ")[0]
        rows = [line.strip("| ").split(" | ") for line in table.splitlines() if "|" in line][2:]
        assert [row[0] for row in rows] == [fault.name for fault in FAULTS]
        assert all(len(row) == 3 and all(row) for row in rows)


def test_the_document_counts_problems() -> None:
    bad = Cell("read", "ok", problems=["wrong bytes: x.eml", "late: 99 s"])
    text = document([Result("404", permanent=True, cell=bad)])
    assert "| wrong bytes | 1 |" in text
    assert "| a wait past its deadline | 1 |" in text
    assert "| a dead daemon | 0 |" in text
    assert "| 404 | **not run** | ok (no such request) **a wait past its deadline; wrong b" in text


def test_the_documents_say_that_there_is_no_problem() -> None:
    text = DOCUMENT.read_text()
    for kind in PROBLEMS:
        assert f"| {kind} | 0 |" in text
    readme = " ".join((DOCUMENT.parents[1] / "README.md").read_text().split())
    count = f"{len(expected_keys()):,}"
    assert f"In {count} tests with injected faults, there were 0 wrong bytes and 0 hangs" in readme
