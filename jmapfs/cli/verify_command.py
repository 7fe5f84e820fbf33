"""`jmapfs verify`: showing how far it is, and what was found; and putting that on record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

import click

from jmapfs.cli.options import escaped, format_size
from jmapfs.cli.output import console, counting, json_document, weighing
from jmapfs.cli.signals import run_with_signals
from jmapfs.errors import StorageError
from jmapfs.snapshot.findings import KINDS, VerifyResult, counted, error_of
from jmapfs.snapshot.manifest import Description
from jmapfs.snapshot.verify import snapshots_at, verify
from jmapfs.snapshot.verify_read import Inodes
from jmapfs.snapshot.verify_record import Verification, destination_of, record


@click.command("verify")
@click.argument("place", metavar="DEST[/DATE]", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Look at names and sizes only; do not read the mail.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but what is wrong.")
def verify_command(place: Path, *, quick: bool, as_json: bool, quiet: bool) -> None:
    """Compare one snapshot, or all in DEST, with their checksums.

    Files that are altered, missing or extra are named, one a line. The exit code is 11, 12 or 13
    for these, the first of them that there is. It needs neither the account nor its server, nor
    the rest of DEST: a copy of a snapshot anywhere is as good.
    """
    run = _Run(quick=quick, as_json=as_json, quiet=quiet)
    for directory in snapshots_at(place):
        run.verify(directory)
    run.end()


class _Run:
    """What was found so far; a file that several snapshots share is read for the first of them."""

    def __init__(self, *, quick: bool, as_json: bool, quiet: bool) -> None:
        self._quick = quick
        self._as_json = as_json
        self._quiet = quiet
        self._inodes = Inodes()
        self._results: list[VerifyResult] = []
        self._failure: StorageError | None = None
        self._obstacle = ""
        self._documents: list[dict[str, Any]] = []

    def verify(self, directory: Path) -> None:
        """Verify a snapshot, and show what was found."""
        try:
            with _Display(directory.name, quick=self._quick, quiet=self._quiet) as display:
                result = run_with_signals(
                    partial(
                        verify,
                        directory,
                        quick=self._quick,
                        inodes=self._inodes,
                        progress=display,
                    )
                )
        except StorageError as error:
            # The others can still be verified; one may have been pruned meanwhile.
            if self._failure is not None:
                console.print(f"jmapfs: {self._failure}", markup=False)
            self._failure = error
            self._documents.append({"path": escaped(str(directory)), "error": escaped(str(error))})
            return
        self._results.append(result)
        obstacle = _put_on_record(result)
        if self._as_json:
            remarks = [*result.remarks, *([obstacle] if obstacle else [])]
            self._documents.append(_document(result, remarks))
        else:
            self._show(result, obstacle)

    def end(self) -> None:
        """Show what it all comes to; raises the error that tells of what is wrong."""
        error = error_of(self._results)
        if self._as_json:
            click.echo(json_document({"snapshots": self._documents}))
        elif self._results and not self._quiet:
            click.echo(_summary(self._results))
        if error is None:
            error = self._failure
        elif self._failure is not None:
            console.print(f"jmapfs: {self._failure}", markup=False)
        if error is not None:
            raise error

    def _show(self, result: VerifyResult, obstacle: str) -> None:
        name = escaped(result.path.name)
        for finding in result.findings:
            path = escaped(f"{result.path.name}/{finding.path}")
            click.echo(f"{finding.kind:7}  {path}: {escaped(finding.detail)}")
        if self._quiet:
            return
        for remark in result.remarks:
            console.print(f"jmapfs: {name}: {remark}", markup=False)
        # On a medium that cannot be written it is the same for all snapshots.
        if obstacle not in {"", self._obstacle}:
            self._obstacle = obstacle
            console.print(f"jmapfs: {obstacle}", markup=False)


class _Display:
    """Shows how far the verification of one snapshot is; a context manager."""

    def __init__(self, name: str, *, quick: bool, quiet: bool) -> None:
        self._what = f"verifying {escaped(name)}"
        self._quick = quick
        self._quiet = quiet
        self._stack = contextlib.ExitStack()
        self._show: Callable[[int, int], None] = _show_nothing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def began(self, description: Description | None) -> None:
        """Show a bar, if it is known how much there is."""
        if self._quiet or description is None:
            return
        mails = description.mails
        if self._quick:
            count = self._stack.enter_context(counting(console, self._what, mails))
            self._show = lambda mails, _: count(mails)
        else:
            bar = weighing(console, self._what, mails, description.bytes)
            self._show = self._stack.enter_context(bar)

    def checked(self, mails: int, size: int) -> None:
        """Show how many more mails are checked, and bytes."""
        self._show(mails, size)


def _show_nothing(mails: int, size: int) -> None:
    pass


def _put_on_record(result: VerifyResult) -> str:
    """Put a result on record where that is done; return why it cannot be, or nothing."""
    try:
        destination = destination_of(result.path)
        if destination is not None:
            when = datetime.now(UTC).replace(microsecond=0)
            verification = Verification(when, result.outcome, result.quick)
            record(destination, result.path.name, verification)
    except StorageError as error:
        return escaped(str(error))
    return ""


def _summary(results: Sequence[VerifyResult]) -> str:
    mails = sum(result.mails for result in results)
    files = sum(result.files for result in results)
    size = sum(result.bytes_read for result in results)
    name = escaped(results[0].path.name) if len(results) == 1 else f"{len(results):,} snapshots"
    how = "no content read" if results[0].quick else f"{format_size(size)} read"
    wrong = any(result.findings for result in results)
    outcome = counted(results) if wrong else "all as it was"
    return f"{name}: {mails:,} mails in {files:,} files, {how}: {outcome}"


def _document(result: VerifyResult, remarks: Sequence[str]) -> dict[str, Any]:
    counts = result.counts()
    return {
        "path": escaped(str(result.path)),
        "outcome": result.outcome,
        "quick": result.quick,
        "mails": result.mails,
        "files": result.files,
        "bytes_read": result.bytes_read,
        **{kind: counts[kind] for kind in KINDS},
        "findings": [
            {"kind": one.kind, "path": escaped(one.path), "detail": escaped(one.detail)}
            for one in result.findings
        ],
        "remarks": remarks,
    }
