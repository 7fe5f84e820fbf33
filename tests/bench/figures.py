"""Measured values, their targets, the peers and the machine."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """A bound, in the unit of its figure."""

    bound: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Bar:
    """The position of a figure in the plot: its panel, group and series."""

    panel: str
    group: str
    series: str


@dataclass(frozen=True)
class Figure:
    """A measurement of one or more runs; its value is the median.

    A ratio has two `sides`, the figures that were divided, with all their runs.
    """

    name: str
    unit: str
    runs: tuple[float, ...]
    target: Target | None = None
    sides: tuple[Figure, Figure] | None = None
    bar: Bar | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.runs)

    @property
    def met(self) -> bool | None:
        return self.target.met_by(self.value) if self.target else None

    def against(self, peer: Figure, name: str, target: Target | None = None) -> Figure:
        """Return the ratio of this figure to the figure of a peer in the same unit.

        Runs in alternation are compared in pairs, because load on the machine affects both runs
        of a pair. If the numbers of runs differ, the medians are compared.
        """
        pairs = [(self.value, peer.value)]
        if len(self.runs) == len(peer.runs):
            pairs = list(zip(self.runs, peer.runs, strict=True))
        runs = tuple(ours / theirs for ours, theirs in pairs)
        return Figure(name, "×", runs, target, sides=(self, peer))


@dataclass(frozen=True)
class Machine:
    """The machine that measured."""

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


def at_least(bound: float) -> Target:
    return Target(bound, at_least=True)


def at_most(bound: float) -> Target:
    return Target(bound)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
