"""Writes docs/faults.md from the results of the fault matrix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

from tests.faults.faults import FAULTS
from tests.faults.matrix import Result
from tests.faults.operations import (
    ASKED_SECONDS,
    OPERATIONS,
    RECOVERY_SECONDS,
    SLACK,
    Cell,
    Operation,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"

_Key = tuple[str, str, bool]

_HEAD = Path(__file__).with_name("head.md").read_text()

# What must never happen, and how a problem of a cell begins.
PROBLEMS = {
    "wrong bytes": ("wrong bytes", "wrong content", "the snapshot is damaged"),
    "a short file": ("short file",),
    "a partial listing or copy shown as complete": (
        "Inbox shows",
        "Read shows",
        "Batch shows",
        "Ahead shows",
        "Prefetch shows",
        "Copy shows",
        "sync succeeded",
        "prefetch succeeded",
        "the snapshot failed",
        "the frozen tree",
    ),
    "a wait past its deadline": ("late", "no end", "the freeze does not end"),
    "a dead daemon": ("the daemon is dead",),
    "a traceback": ("a bug", "traceback", "Traceback"),
    "credentials sent to another host": ("credentials",),
    "no recovery": ("does not work again",),
    "another problem": ("",),
}


def document(results: Iterable[Result]) -> str:
    """Return the document."""
    cells = {result.key: result.cell for result in results}
    counts = dict.fromkeys(PROBLEMS, 0)
    for cell in cells.values():
        for kind in {_kind_of(problem) for problem in cell.problems}:
            counts[kind] += 1
    head = _HEAD.format(
        counts="\n".join(f"| {kind} | {count} |" for kind, count in counts.items()),
        cells=len(cells),
        faults=len(FAULTS),
        operations=len(OPERATIONS),
        good=sum(cell.what.startswith(("ok", "shown")) for cell in cells.values()),
        recovery=max((cell.recovered or 0 for cell in cells.values()), default=0),
        slack=SLACK,
        asked=ASKED_SECONDS,
        again=RECOVERY_SECONDS + SLACK,
        deadlines="\n".join(map(_deadline, OPERATIONS)),
        texts="\n".join(f"| {fault.name} | {fault.text} |" for fault in FAULTS),
    )
    return head + "".join(_table(operation, cells) for operation in OPERATIONS)


def expected_keys() -> set[_Key]:
    """Return the keys of all cells."""
    names = [fault.name for fault in FAULTS]
    operations = [operation.name for operation in OPERATIONS]
    return set(itertools.product(names, operations, (False, True)))


def _kind_of(problem: str) -> str:
    return next(kind for kind, starts in PROBLEMS.items() if problem.startswith(starts))


def _deadline(operation: Operation) -> str:
    kinds = ", ".join(sorted(operation.kinds))
    seconds = math.ceil(operation.seconds)
    return f"| {operation.name} | {operation.text} | {kinds} | {seconds} s | {operation.reason} |"


def _table(operation: Operation, cells: dict[_Key, Cell]) -> str:
    lines = [f"\n## {operation.name.capitalize()}\n", "| Fault | Once | Permanently |"]
    lines.append("| --- | --- | --- |")
    for fault in FAULTS:
        shown = [
            _shown(cells.get((fault.name, operation.name, permanent)))
            for permanent in (False, True)
        ]
        lines.append(f"| {fault.name} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines) + "\n"


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "**not run**"
    text = cell.what + (f", {cell.seconds:.0f} s" if cell.seconds >= 0.5 else "")
    if cell.recovered is not None and cell.recovered >= 0.5:
        text += f"; again after {cell.recovered:.0f} s"
    if not cell.injected:
        text += " (no such request)"
    if cell.problems:
        text += f" **{'; '.join(sorted({_kind_of(problem) for problem in cell.problems}))}**"
    return text
