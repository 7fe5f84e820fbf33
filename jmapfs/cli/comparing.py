"""`jmapfs diff`: what became of the mail between two snapshots, a line for each change."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from jmapfs.cli.display import console
from jmapfs.cli.escaping import escaped, escaped_json
from jmapfs.cli.options import destination_argument
from jmapfs.snapshot.comparing import (
    Added,
    Change,
    Flagged,
    Gone,
    Moved,
    RenamedMailbox,
    changes_between,
    renamed_mailboxes,
)
from jmapfs.snapshot.destination import Destination, Snapshot
from jmapfs.snapshot.manifest import is_intact
from jmapfs.snapshot.records import MAIL

_KINDS: Final = {Added: "added", Gone: "gone", Moved: "moved", Flagged: "flagged"}


@click.command("diff")
@destination_argument
@click.argument("old", metavar="DATE")
@click.argument("new", metavar="DATE")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as one JSON document.")
def diff_command(destination: Path, old: str, new: str, *, as_json: bool) -> None:
    """Show what became of the mail between two snapshots in DEST, the earlier one first.

    DATE is the name of a snapshot, or `latest`. A mail that is new has a line with +, one that is
    gone with -, one that was moved with >, and one whose keywords changed with *; a renamed mailbox
    one with R. A mail in several mailboxes has several names, and one line.
    """
    place = Destination(destination)
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
        case Added():
            return f"+  {_names(change.files)}"
        case Gone():
            return f"-  {_names(change.files)}"
        case Moved():
            return f">  {_names(change.old)} → {_names(change.new)}"
        case Flagged():
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
