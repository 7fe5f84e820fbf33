"""`jmapfs prune`: which snapshots are to be kept, and what becomes of the others.

`jmapfs snapshots`: a table of the snapshots that there are.

`jmapfs diff`: what became of the mail between two snapshots, a line for each change.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console

from jmapfs.cli.options import destination_argument, escaped, format_size
from jmapfs.cli.output import columns, console, escaped_json, json_document
from jmapfs.snapshot.diff import (
    Change,
    KeywordsChanged,
    MailAdded,
    MailMoved,
    MailRemoved,
    RenamedMailbox,
    changes_between,
    renamed_mailboxes,
)
from jmapfs.snapshot.manifest import MAIL, is_intact
from jmapfs.snapshot.overview import RepositoryOverview, SnapshotStatus, list_snapshots
from jmapfs.snapshot.prune import (
    UNLIMITED,
    Pruned,
    PrunePlan,
    RetentionPolicy,
    Verdict,
    plan_pruning,
    prune,
)
from jmapfs.snapshot.repository import Repository, Snapshot
from jmapfs.snapshot.verify_record import Verification

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
    overview = list_snapshots(Repository(destination))
    if as_json:
        click.echo(json_document(overview))
    else:
        _show(overview)


def _show(overview: RepositoryOverview) -> None:
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


def _row(line: SnapshotStatus) -> tuple[str, ...]:
    counts = ["" if count is None else f"{count:,}" for count in (line.mails, line.new, line.gone)]
    added = "" if line.added_bytes is None else format_size(line.added_bytes)
    return (line.date, *counts, added, line.state, _verified(line.verified))


def _verified(verification: Verification | None) -> str:
    if verification is None:
        return "never"
    how = " (quick)" if verification.quick else ""
    return f"{verification.when:%Y-%m-%d %H:%M}: {verification.outcome}{how}"


_KINDS: Final = {
    MailAdded: "added",
    MailRemoved: "gone",
    MailMoved: "moved",
    KeywordsChanged: "flagged",
}


@click.command("diff")
@destination_argument
@click.argument("old", metavar="DATE")
@click.argument("new", metavar="DATE")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as one JSON document.")
def diff_command(destination: Path, old: str, new: str, *, as_json: bool) -> None:
    """Show how the mail changed between two snapshots in DEST.

    DATE is the name of a snapshot, or `latest`. A mail that is new has a line with +, one that is
    gone with -, one that was moved with >, and one whose keywords changed with *; a renamed mailbox
    one with R. A mail in several mailboxes has several names, and one line.
    """
    place = Repository(destination)
    earlier, later = place.snapshot(old), place.snapshot(new)
    renamed = renamed_mailboxes(earlier.description(), later.description())
    for snapshot in (earlier, later):
        if not is_intact(snapshot.path):
            console.print(
                f"jmapfs: {snapshot.path} is damaged, and this may be wrong: run verify",
                markup=False,
            )
    changes = changes_between(earlier, later)
    if as_json:
        _write(_json(earlier, later, renamed, changes), "utf-8")
    else:
        _write(_lines(renamed, changes), sys.stdout.encoding)


def _write(lines: Iterable[str], encoding: str) -> None:
    """Print lines; what an encoding has no bytes for is escaped, as names are of all scripts."""
    output = sys.stdout.buffer
    # Not echo, which flushes each line: there may be a million.
    output.writelines(f"{line}\n".encode(encoding, "backslashreplace") for line in lines)
    output.flush()


def _lines(renamed: Sequence[RenamedMailbox], changes: Iterable[Change]) -> Iterator[str]:
    for mailbox in renamed:
        yield f"R  {escaped(mailbox.old)} → {escaped(mailbox.new)}"
    counts: Counter[str] = Counter()
    for change in changes:
        counts[_KINDS[type(change)]] += 1
        yield _line(change)
    parts = [f"{counts[kind]:,} {kind}" for kind in _KINDS.values()]
    mailboxes = "mailbox" if len(renamed) == 1 else "mailboxes"
    yield f"{', '.join(parts)}; {len(renamed):,} {mailboxes} renamed"


def _line(change: Change) -> str:
    match change:
        case MailAdded():
            return f"+  {_names(change.files)}"
        case MailRemoved():
            return f"-  {_names(change.files)}"
        case MailMoved():
            return f">  {_names(change.old)} → {_names(change.new)}"
        case KeywordsChanged():
            flags = [f"+{keyword}" for keyword in change.set]
            flags += [f"-{keyword}" for keyword in change.cleared]
            return f"*  {_names(change.files)}  {escaped(' '.join(flags))}"


def _names(files: Sequence[str]) -> str:
    return escaped(", ".join(file.removeprefix(f"{MAIL}/") for file in files))


def _json(
    old: Snapshot, new: Snapshot, renamed: Sequence[RenamedMailbox], changes: Iterable[Change]
) -> Iterator[str]:
    """Yield the lines of one document: of all changes of a large account none is kept."""

    def encoded(value: object) -> str:
        return escaped_json(msgspec.json.encode(value).decode())

    counts = dict.fromkeys(_KINDS.values(), 0)
    yield f'{{"old": {encoded(old.date)}, "new": {encoded(new.date)},'
    yield f'"renamed_mailboxes": {encoded(renamed)},'
    yield '"changes": ['
    separator = ""
    for change in changes:
        counts[_KINDS[type(change)]] += 1
        yield f"{separator}{encoded(change)}"
        separator = ","
    yield f'], "counts": {encoded(counts)}}}'


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
    place = Repository(destination)
    policy = RetentionPolicy(last, hourly, daily, weekly, monthly, yearly)
    if dry_run:
        pruned = Pruned(plan_pruning(place, policy), 0)
    else:
        shown = Console(quiet=True) if quiet else console
        with shown.status("looking") as status:
            pruned = prune(place, policy, lambda date: status.update(f"removing {date}"))
    if not quiet:
        _warn(pruned.plan)
    if as_json:
        click.echo(_pruning_json(pruned, dry_run=dry_run))
    elif not quiet:
        _pruning_show(pruned, place, dry_run=dry_run)


def _warn(plan: PrunePlan) -> None:
    for one in plan.left_alone:
        console.print(f"jmapfs: {one.date} is left alone: {escaped(one.reason)}", markup=False)


def _pruning_show(pruned: Pruned, destination: Repository, *, dry_run: bool) -> None:
    plan = pruned.plan
    if not plan.snapshots:
        click.echo(f"{escaped(str(destination.path))}: there are no snapshots")
        return
    for line in columns([_pruning_row(verdict) for verdict in plan.snapshots]):
        click.echo(line)
    removed = len(plan.removed)
    what = "would be removed" if dry_run else f"removed ({format_size(pruned.freed_bytes)})"
    click.echo(f"{len(plan.snapshots) - removed:,} kept, {removed:,} {what}")


def _pruning_row(verdict: Verdict) -> tuple[str, str, str]:
    notes = [*verdict.reasons, *(["damaged"] if verdict.damaged else [])]
    return verdict.date, "keep" if verdict.kept else "remove", ", ".join(notes)


def _pruning_json(pruned: Pruned, *, dry_run: bool) -> str:
    document = {
        "dry_run": dry_run,
        "snapshots": pruned.plan.snapshots,
        "left_alone": pruned.plan.left_alone,
        "freed_bytes": None if dry_run else pruned.freed_bytes,
    }
    return json_document(document)
