"""`jmapfs snapshots`: a table of the snapshots that there are."""

from __future__ import annotations

from pathlib import Path

import click

from jmapfs.cli.columns import columns
from jmapfs.cli.escaping import json_document
from jmapfs.cli.options import destination_argument
from jmapfs.cli.quantities import readable
from jmapfs.snapshot.destination import Destination
from jmapfs.snapshot.overview import Line, Overview, look_over
from jmapfs.snapshot.verified import Verification

_HEADING = ("DATE", "MAILS", "NEW", "GONE", "ADDED", "STATE", "VERIFIED")
_NUMBERS = range(1, 5)


@click.command("snapshots")
@destination_argument
@click.option("--json", "as_json", is_flag=True, help="Print all there is to know, as JSON.")
def snapshots_command(destination: Path, *, as_json: bool) -> None:
    """List the snapshots in DEST, the oldest first.

    NEW and GONE are mails, and ADDED is the disk space that the snapshot took, all in comparison
    to the one before it. STATE is by what is on record: `jmapfs verify` looks.
    """
    overview = look_over(Destination(destination))
    if as_json:
        click.echo(json_document(overview))
    else:
        _show(overview)


def _show(overview: Overview) -> None:
    if overview.snapshots:
        rows = [_HEADING, *(_row(line) for line in overview.snapshots)]
        for row in columns(rows, numbers=_NUMBERS):
            click.echo(row)
    else:
        click.echo("there are no snapshots")
    if overview.unfinished:
        click.echo(
            f"{overview.unfinished:,} not finished: the next run takes over what has come for it"
        )
    if overview.half_removed:
        click.echo(f"{overview.half_removed:,} half removed: the next prune completes that")


def _row(line: Line) -> tuple[str, ...]:
    counts = ["" if count is None else f"{count:,}" for count in (line.mails, line.new, line.gone)]
    added = "" if line.added_bytes is None else readable(line.added_bytes)
    return (line.date, *counts, added, line.state, _verified(line.verified))


def _verified(verification: Verification | None) -> str:
    if verification is None:
        return "never"
    how = " (quick)" if verification.quick else ""
    return f"{verification.when:%Y-%m-%d %H:%M}: {verification.outcome}{how}"
