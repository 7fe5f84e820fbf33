"""What was measured, what was hoped for, and on which machine; as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A bound, in the unit of its figure."""

    bound: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Figure:
    """One measurement, of one run or more: the median is what counts."""

    name: str
    unit: str
    runs: tuple[float, ...]
    target: Target | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.runs)

    @property
    def met(self) -> bool | None:
        return self.target.met_by(self.value) if self.target else None


@dataclass(frozen=True)
class Machine:
    """What it was measured on."""

    cpu: str
    cores: int
    kernel: str
    python: str

    @classmethod
    def this(cls) -> Machine:
        return cls(
            _cpu_model(),
            len(os.sched_getaffinity(0)),
            f"{platform.system()} {platform.release()}",
            platform.python_version(),
        )


def markdown(machine: Machine, figures: Sequence[Figure]) -> str:
    """Return a table of all figures below a line about the machine."""
    lines = [
        f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, Python {machine.python}",
        "",
        "| measurement | result | runs | target | met |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for figure in figures:
        runs = ", ".join(map(_number, figure.runs)) if len(figure.runs) > 1 else ""
        cells = (figure.name, _amount(figure.value, figure.unit), runs, *_verdict(figure))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(machine: Machine, figures: Sequence[Figure]) -> str:
    """Return everything, every run included, for a later comparison."""
    return json.dumps(
        {"machine": vars(machine), "figures": [_fields(figure) for figure in figures]}, indent=2
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
    }


def _verdict(figure: Figure) -> tuple[str, str]:
    if figure.target is None:
        return "", ""
    sign = "≥" if figure.target.at_least else "≤"
    bound = f"{sign} {_amount(figure.target.bound, figure.unit)}"
    return bound, "yes" if figure.met else "**no**"


def _amount(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
