"""`jmapfs snapshots`, `diff` and `prune`: list, compare and remove the snapshots in DEST."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from jmapfs.cli.options import destination_argument, format_size
from jmapfs.cli.output import (
    notice,
    print_json,
    print_json_lines,
    print_line,
    print_lines,
    print_table,
)
from jmapfs.cli.progress import WorkDisplay
from jmapfs.snapshot import dates
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
    PruneResult,
    RetentionPolicy,
    Verdict,
    plan_pruning,
    prune,
)
from jmapfs.snapshot.repository import CORRECT_DATES, Repository, Snapshot
from jmapfs.text import escaped_json

_HEADINGS: Final = ("DATE", "MAILS", "NEW", "GONE", "ADDED", "STATE", "VERIFIED")
_NUMBER_COLUMNS: Final = range(1, 5)


@click.command("snapshots")
@destination_argument
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--correct-dates",
    is_flag=True,
    help="Give snapshots that are dated in the future another date first.",
)
def snapshots_command(destination: Path, *, as_json: bool, correct_dates: bool) -> None:
    """List the snapshots in DEST, the oldest first.

    NEW and GONE count mails, and ADDED is disk space, each compared with the previous snapshot.
    STATE comes from recorded data only: use `jmapfs verify` to check the files.

    A snapshot that was made while the clock was wrong may have a date in the future. Then later
    snapshots have such dates too. With --correct-dates, they get dates up to now, in their order.
    """
    repository = Repository(destination)
    if correct_dates:
        dates.correct_dates(repository, lambda one: notice(f"{one.old} is now {one.new}"))
    overview = list_snapshots(repository)
    if as_json:
        print_json(overview)
    else:
        _show_overview(overview)


def _show_overview(overview: RepositoryOverview) -> None:
    if overview.snapshots:
        rows = [_HEADINGS, *(_overview_row(snapshot) for snapshot in overview.snapshots)]
        print_table(rows, numbers=_NUMBER_COLUMNS)
    else:
        print_line("there are no snapshots")
    future = sum(one.in_future for one in overview.snapshots)
    if future:
        have = "1 has a date" if future == 1 else f"{future:,} have dates"
        print_line(
            f"{have} in the future: --correct-dates gives them others when the clock is right"
        )
    if overview.unfinished:
        print_line(f"{overview.unfinished:,} unfinished: the next run uses the mail fetched so far")
    if overview.half_removed:
        print_line(f"{overview.half_removed:,} partly removed: the next prune removes the rest")


def _overview_row(snapshot: SnapshotStatus) -> tuple[str, ...]:
    numbers = (snapshot.mails, snapshot.new, snapshot.gone)
    counts = ["" if number is None else f"{number:,}" for number in numbers]
    added = "" if snapshot.added_bytes is None else format_size(snapshot.added_bytes)
    verified = "never"
    if snapshot.verified is not None:
        quick = " (quick)" if snapshot.verified.quick else ""
        verified = f"{snapshot.verified.when:%Y-%m-%d %H:%M}: {snapshot.verified.outcome}{quick}"
    return (snapshot.date, *counts, added, snapshot.state, verified)


_CHANGE_NAMES: Final = {
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

    DATE is the name of a snapshot, or `latest`. The earlier snapshot comes first.

    Each line begins with a sign: + for new mail, - for mail that is gone, > for moved mail, * for
    changed keywords, and R for a renamed mailbox. A mail in several mailboxes has several names on
    one line.
    """
    repository = Repository(destination)
    earlier, later = repository.snapshot(old), repository.snapshot(new)
    descriptions = earlier.description(), later.description()
    renamed = renamed_mailboxes(*descriptions)
    for description in descriptions:
        if lacking := description.lacking:
            notice(f"{description.date} was made without {lacking}, so mail may seem new or gone")
    for snapshot in (earlier, later):
        if not is_intact(snapshot.path):
            notice(f"{snapshot.path} is damaged, so this may be wrong: run jmapfs verify")
    changes = changes_between(earlier, later)
    if as_json:
        print_json_lines(_diff_json(earlier, later, renamed, changes))
    else:
        print_lines(_diff_lines(renamed, changes))


def _diff_lines(renamed: Sequence[RenamedMailbox], changes: Iterable[Change]) -> Iterator[str]:
    for mailbox in renamed:
        yield f"R  {mailbox.old} → {mailbox.new}"
    counts: Counter[str] = Counter()
    for change in changes:
        counts[_CHANGE_NAMES[type(change)]] += 1
        yield _diff_line(change)
    parts = [f"{counts[kind]:,} {kind}" for kind in _CHANGE_NAMES.values()]
    mailboxes = "mailbox" if len(renamed) == 1 else "mailboxes"
    yield f"{', '.join(parts)}; {len(renamed):,} {mailboxes} renamed"


def _diff_line(change: Change) -> str:
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
            return f"*  {_names(change.files)}  {' '.join(flags)}"


def _names(files: Sequence[str]) -> str:
    return ", ".join(file.removeprefix(f"{MAIL}/") for file in files)


def _diff_json(
    old: Snapshot, new: Snapshot, renamed: Sequence[RenamedMailbox], changes: Iterable[Change]
) -> Iterator[str]:
    """Yield the lines of one JSON document. The changes are not all held in memory."""

    def encoded(value: object) -> str:
        return escaped_json(msgspec.json.encode(value).decode())

    counts = dict.fromkeys(_CHANGE_NAMES.values(), 0)
    yield f'{{"old": {encoded(old.date)}, "new": {encoded(new.date)},'
    yield f'"renamed_mailboxes": {encoded(renamed)},'
    yield '"changes": ['
    separator = ""
    for change in changes:
        counts[_CHANGE_NAMES[type(change)]] += 1
        yield f"{separator}{encoded(change)}"
        separator = ","
    yield f'], "counts": {encoded(counts)}}}'


_UNLIMITED: Final = "unlimited"


class _CountParameter(click.ParamType[int]):
    """A number of snapshots to keep, or `unlimited`."""

    name = "count"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        if value == _UNLIMITED:
            return UNLIMITED
        if not (value.isascii() and value.isdecimal() and value.strip("0")):
            self.fail(f"{value!r} is not a number from 1, nor {_UNLIMITED}", param, ctx)
        # A number of ten or more digits means `unlimited`: there are never so many snapshots.
        # Python cannot convert very long numbers.
        return int(value) if len(value) < 10 else UNLIMITED


def _keep_option(name: str, help_text: str) -> Callable[[click.decorators.FC], click.decorators.FC]:
    return click.option(f"--keep-{name}", name, type=_CountParameter(), metavar="N", help=help_text)


@click.command("prune")
@destination_argument
@_keep_option("last", "Keep the N newest snapshots.")
@_keep_option("hourly", "Keep the newest snapshot of each of the last N hours that have one.")
@_keep_option("daily", "The same for days.")
@_keep_option("weekly", "The same for weeks, which begin on Monday.")
@_keep_option("monthly", "The same for months.")
@_keep_option("yearly", "The same for years.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result for each snapshot as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def prune_command(
    destination: Path, *, dry_run: bool, as_json: bool, quiet: bool, **rules: int | None
) -> None:
    """Remove the snapshots in DEST that no rule keeps.

    N is a number, or `unlimited`. A snapshot that any rule keeps is kept. Hours and days are in
    UTC, as in the names of snapshots. The newest intact and complete snapshot is always kept. If
    none is complete, the one that lacks the fewest mails is kept. Files that jmapfs did not make,
    and snapshots of other accounts, are left alone.
    """
    repository = Repository(destination)
    policy = RetentionPolicy(**rules)
    if dry_run:
        pruned = PruneResult(plan_pruning(repository, policy), 0)
    else:
        with WorkDisplay("reading the snapshots", quiet=quiet) as display:
            pruned = prune(repository, policy, lambda date: display.update(f"removing {date}"))
    if not quiet:
        for skipped in pruned.plan.left_alone:
            notice(f"{skipped.date} is left alone: {skipped.reason}")
    elif future := repository.in_future(datetime.now(UTC)):
        # Without this line, a job of cron would remove nothing any more, and nobody would know.
        notice(
            f"{future[-1].path} is dated in the future, so it is not removed: run"
            f" {CORRECT_DATES.format(repository.path)}"
        )
    if as_json:
        print_json(_prune_document(pruned, dry_run=dry_run))
    elif not quiet:
        _show_pruned(pruned, repository, dry_run=dry_run)


def _show_pruned(pruned: PruneResult, repository: Repository, *, dry_run: bool) -> None:
    verdicts = pruned.plan.snapshots
    if not verdicts:
        none = "nothing is removed" if pruned.plan.left_alone else "there are no snapshots"
        print_line(f"{repository.path}: {none}")
        return
    print_table([_verdict_row(verdict) for verdict in verdicts])
    removed = len(pruned.plan.removed)
    what = "would be removed" if dry_run else f"removed ({format_size(pruned.freed_bytes)})"
    print_line(f"{len(verdicts) - removed:,} kept, {removed:,} {what}")


def _verdict_row(verdict: Verdict) -> tuple[str, str, str]:
    notes = list(verdict.reasons)
    notes += ["damaged"] if verdict.damaged else []
    notes += ["incomplete"] if verdict.incomplete else []
    return verdict.date, "keep" if verdict.kept else "remove", ", ".join(notes)


def _prune_document(pruned: PruneResult, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "snapshots": pruned.plan.snapshots,
        "left_alone": pruned.plan.left_alone,
        "freed_bytes": None if dry_run else pruned.freed_bytes,
    }
