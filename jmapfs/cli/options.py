"""Options that several commands share, and the text form of sizes and durations."""

import re
from functools import partial
from pathlib import Path
from typing import Final

import click
import platformdirs

_SIZE_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)

_DURATION_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


class SizeParameter(click.ParamType[int]):
    """A size in bytes, such as `500M` or `10G` (powers of 1024)."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is not a size, such as 500M or 10G", param, ctx)
        return int(float(match[1]) * _SIZE_UNITS[match[2].upper()])


def format_size(size: int) -> str:
    """Return a size in bytes as text, such as `1.4 GiB`."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


class DurationParameter(click.ParamType[float]):
    """A duration in seconds, such as `90s`, `10m`, `2h` or `1d`."""

    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number of seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(value.strip())
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a duration, such as 30s, 10m or 2h", param, ctx)
        return float(match[1]) * _DURATION_UNITS[match[2]]


class PathParameter(click.ParamType[Path]):
    """A path that nobody touches. `click.Path` calls stat, which hangs in a mount that hangs."""

    name = "path"

    def convert(
        self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path."""
        del param, ctx
        return Path(value)


directory_type: Final = PathParameter()

mountpoint_argument: Final = click.argument("mountpoint", type=directory_type)

destination_argument: Final = click.argument(
    "destination", metavar="DEST", type=click.Path(path_type=Path, resolve_path=True)
)

account_option: Final = click.option(
    "--account",
    "selection",
    metavar="NAME",
    help="Use another of the accounts that the user can see.",
)

cache_directory_option: Final = click.option(
    "--cache-dir",
    type=directory_type,
    default=partial(platformdirs.user_cache_path, "jmapfs"),
    help="Keep the index and the mail in this directory.  [default: $XDG_CACHE_HOME/jmapfs]",
)
