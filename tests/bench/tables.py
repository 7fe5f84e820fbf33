"""Figures as a Markdown table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.bench.figures import Figure, Machine

#: More runs are summarized.
_MOST_RUNS = 5


def markdown(machine: Machine, figures: Sequence[Figure]) -> str:
    """Return a line about the machine and a table of all figures."""
    lines = [
        f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, Python {machine.python}",
        "",
        "| measurement | result | runs | target | met |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for figure in figures:
        cells = (figure.name, _result(figure), _runs(figure), *_verdict(figure))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(machine: Machine, figures: Sequence[Figure]) -> str:
    """Return all figures with all their runs."""
    return json.dumps(
        {"machine": vars(machine), "figures": [_fields(figure) for figure in figures]},
        indent=2,
        ensure_ascii=False,
    )


def _fields(figure: Figure) -> dict[str, Any]:
    target = figure.target
    return {
        "name": figure.name,
        "unit": figure.unit,
        "value": figure.value,
        "runs": figure.runs,
        "target": target and {"bound": target.bound, "at_least": target.at_least},
        "met": figure.met,
        "sides": figure.sides and [_side(side) for side in figure.sides],
    }


def _side(side: Figure) -> dict[str, Any]:
    return {"name": side.name, "unit": side.unit, "value": side.value, "runs": side.runs}


def _result(figure: Figure) -> str:
    result = _amount(figure.value, figure.unit)
    if figure.sides is None:
        return result
    ours, theirs = figure.sides
    return f"{result} ({_number(ours.value)} to {_amount(theirs.value, theirs.unit)})"


def _runs(figure: Figure) -> str:
    if len(figure.runs) > _MOST_RUNS:
        least, most = min(figure.runs), max(figure.runs)
        return f"{len(figure.runs)} runs, {_number(least)} to {_number(most)}"
    return ", ".join(map(_number, figure.runs)) if len(figure.runs) > 1 else ""


def _verdict(figure: Figure) -> tuple[str, str]:
    if figure.target is None:
        return "", ""
    sign = "≥" if figure.target.at_least else "≤"
    bound = f"{sign} {_amount(figure.target.bound, figure.unit)}"
    return bound, "yes" if figure.met else "**no**"


def _amount(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}".rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
