"""`jmapfs prune`: which snapshots are to be kept, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from jmapfs.cli.columns import columns
from jmapfs.cli.display import console
from jmapfs.cli.escaping import escaped, json_document
from jmapfs.cli.options import destination_argument
from jmapfs.cli.quantities import readable
from jmapfs.snapshot.destination import Destination
from jmapfs.snapshot.policy import UNLIMITED, Policy
from jmapfs.snapshot.pruning import Plan, Pruned, Verdict, plan_pruning, prune

_UNLIMITED: Final = "unlimited"


class Count(click.ParamType[int]):
    """How many snapshots to keep: a number, or `unlimited`."""

    name = "count"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number, or UNLIMITED."""
        if isinstance(value, int):
            return value
        if value == _UNLIMITED:
            return UNLIMITED
        if not (value.isascii() and value.isdecimal() and value.strip("0")):
            self.fail(f"{value!r} is neither 1 or more nor {_UNLIMITED}", param, ctx)
        # More than there can be snapshots is as good as any larger number, of any length.
        return int(value) if len(value) < 10 else UNLIMITED


def _rule(name: str, what: str) -> Callable[[click.decorators.FC], click.decorators.FC]:
    return click.option(f"--keep-{name}", name, type=Count(), metavar="N", help=what)


@click.command("prune")
@destination_argument
@_rule("last", "Keep the N newest snapshots.")
@_rule("hourly", "Keep the newest of each hour that has any, for the last N of them.")
@_rule("daily", "The same for days.")
@_rule("weekly", "The same for weeks, which begin on Monday.")
@_rule("monthly", "The same for months.")
@_rule("yearly", "The same for years.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of each as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but what went wrong.")
def prune_command(
    destination: Path,
    last: int | None,
    hourly: int | None,
    daily: int | None,
    weekly: int | None,
    monthly: int | None,
    yearly: int | None,
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Remove the snapshots in DEST that no rule keeps.

    N is a number, or `unlimited`. What one rule keeps, no other removes; hours and days are those
    of UTC, as in the names of snapshots. The newest snapshot that is whole always stays, and so
    does whatever in DEST is no snapshot of this account by jmapfs.
    """
    place = Destination(destination)
    policy = Policy(last, hourly, daily, weekly, monthly, yearly)
    if dry_run:
        pruned = Pruned(plan_pruning(place, policy), 0)
    else:
        shown = Console(quiet=True) if quiet else console
        with shown.status("looking") as status:
            pruned = prune(place, policy, lambda date: status.update(f"removing {date}"))
    if not quiet:
        _warn(pruned.plan)
    if as_json:
        click.echo(_json(pruned, dry_run=dry_run))
    elif not quiet:
        _show(pruned, place, dry_run=dry_run)


def _warn(plan: Plan) -> None:
    for one in plan.left_alone:
        console.print(f"jmapfs: {one.date} is left alone: {escaped(one.reason)}", markup=False)


def _show(pruned: Pruned, destination: Destination, *, dry_run: bool) -> None:
    plan = pruned.plan
    if not plan.snapshots:
        click.echo(f"{escaped(str(destination.path))}: there are no snapshots")
        return
    for line in columns([_row(verdict) for verdict in plan.snapshots]):
        click.echo(line)
    removed = len(plan.removed)
    what = "would be removed" if dry_run else f"removed ({readable(pruned.freed_bytes)})"
    click.echo(f"{len(plan.snapshots) - removed:,} kept, {removed:,} {what}")


def _row(verdict: Verdict) -> tuple[str, str, str]:
    notes = [*verdict.reasons, *(["damaged"] if verdict.damaged else [])]
    return verdict.date, "keep" if verdict.kept else "remove", ", ".join(notes)


def _json(pruned: Pruned, *, dry_run: bool) -> str:
    document = {
        "dry_run": dry_run,
        "snapshots": pruned.plan.snapshots,
        "left_alone": pruned.plan.left_alone,
        "freed_bytes": None if dry_run else pruned.freed_bytes,
    }
    return json_document(document)
