"""Plots the rates as SVG: a panel for each workload, a bar for each program.

The same figures give the same file, byte for byte, so that it can be committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from tests.bench.figures import Figure

_COLOURS = {
    "jmapfs": "#2b6cb0",
    "jmapfs, mount included": "#90bde8",
    "mbsync": "#d97706",
    "one-by-one loop": "#9ca3af",
    "local disk": "#4b5563",
}
_STYLE: Any = {
    # Text stays text: smaller, and independent of the installed fonts.
    "svg.fonttype": "none",
    "svg.hashsalt": "jmapfs",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_INCHES = (6.0, 4.0)
_SPACE = 0.8


def draw(figures: Sequence[Figure], path: Path) -> bool:
    """Plot the figures that have a bar; return whether there are any."""
    bars = [figure for figure in figures if figure.bar]
    panels = list(dict.fromkeys(figure.bar.panel for figure in bars if figure.bar))
    if not panels:
        return False
    with mpl.rc_context(_STYLE):
        width, height = _INCHES
        drawing = Drawing(figsize=(width * len(panels), height), layout="constrained")
        for number, panel in enumerate(panels, start=1):
            _panel(
                drawing.add_subplot(1, len(panels), number),
                panel,
                [one for one in bars if one.bar and one.bar.panel == panel],
            )
        shown = {
            name: bar
            for axes in drawing.axes
            for bar, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        drawing.legend(
            shown.values(),
            shown.keys(),
            loc="outside lower center",
            ncols=len(shown),
            frameon=False,
        )
        drawing.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    return True


def _panel(axes: Axes, title: str, figures: Sequence[Figure]) -> None:
    values = {
        (figure.bar.group, figure.bar.series): figure.value for figure in figures if figure.bar
    }
    groups = list(dict.fromkeys(group for group, _ in values))
    series = [name for name in _COLOURS if any(name == one for _, one in values)]
    width = _SPACE / len(series)
    for number, name in enumerate(series):
        places = [place for place, group in enumerate(groups) if (group, name) in values]
        drawn = axes.bar(
            [place + width * (number - (len(series) - 1) / 2) for place in places],
            [values[groups[place], name] for place in places],
            width,
            label=name,
            color=_COLOURS[name],
        )
        axes.bar_label(drawn, fmt="{:,.0f}", fontsize=7)
    axes.set_yscale("log")
    axes.set_ylim(bottom=1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlabel("round trip")
    axes.set_ylabel("mails a second")
    axes.set_title(title)
