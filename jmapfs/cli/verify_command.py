"""`jmapfs verify`: shows the progress and the findings, and records the outcome in DEST."""

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from jmapfs.cli.options import directory_type, escaped, format_size
from jmapfs.cli.output import MailProgress, json_document, notice
from jmapfs.cli.signals import run_with_signals
from jmapfs.errors import StorageError
from jmapfs.snapshot.manifest import Description
from jmapfs.snapshot.repository import repository_of
from jmapfs.snapshot.verify import (
    KINDS,
    VerifyResult,
    error_for,
    format_counts,
    snapshots_at,
    verify,
)
from jmapfs.snapshot.verify_read import InodeCache
from jmapfs.snapshot.verify_record import Verification, save_verification


@click.command("verify")
@click.argument("place", metavar="DEST[/DATE]", type=directory_type)
@click.option("--quick", is_flag=True, help="Check names and sizes only; do not read the mail.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print findings and errors only.")
def verify_command(place: Path, *, quick: bool, as_json: bool, quiet: bool) -> None:
    """Compare one snapshot, or all in DEST, with their checksums.

    Each altered, missing or extra file is printed on one line. The exit code is 11 if a file is
    altered; otherwise 12 if one is missing; otherwise 13 if there is an extra one. The command
    needs neither the server nor the other snapshots, so it also verifies a copy of one snapshot.
    """
    run = _VerifyRun(quick=quick, as_json=as_json, quiet=quiet)
    for directory in snapshots_at(place):
        run.verify(directory)
    run.finish()


class _VerifyRun:
    """The findings so far. A file that several snapshots share is read once."""

    def __init__(self, *, quick: bool, as_json: bool, quiet: bool) -> None:
        self._quick = quick
        self._as_json = as_json
        self._quiet = quiet
        self._inodes = InodeCache()
        self._results: list[VerifyResult] = []
        self._failure: StorageError | None = None
        self._record_error = ""
        self._documents: list[dict[str, Any]] = []

    def verify(self, directory: Path) -> None:
        """Verify a snapshot, record the outcome, and show the findings."""
        try:
            with _Display(directory.name, quick=self._quick, quiet=self._quiet) as display:
                result = run_with_signals(
                    partial(
                        verify, directory, quick=self._quick, inodes=self._inodes, progress=display
                    )
                )
        except StorageError as error:
            # This snapshot may have been pruned meanwhile. The others can still be verified.
            if self._failure is not None:
                notice(str(self._failure))
            self._failure = error
            self._documents.append({"path": escaped(str(directory)), "error": escaped(str(error))})
            return
        self._results.append(result)
        record_error = _record(result)
        if self._as_json:
            remarks = [*result.remarks, *([record_error] if record_error else [])]
            self._documents.append(_document(result, remarks))
        else:
            self._show(result, record_error)

    def finish(self) -> None:
        """Show the summary. Raises JmapfsError if something is wrong with a snapshot."""
        error = error_for(self._results)
        if self._as_json:
            click.echo(json_document({"snapshots": self._documents}))
        elif self._results and not self._quiet:
            click.echo(_summary(self._results))
        if error is None:
            error = self._failure
        elif self._failure is not None:
            notice(str(self._failure))
        if error is not None:
            raise error

    def _show(self, result: VerifyResult, record_error: str) -> None:
        for finding in result.findings:
            path = escaped(f"{result.path.name}/{finding.path}")
            click.echo(f"{finding.kind:7}  {path}: {escaped(finding.detail)}")
        if self._quiet:
            return
        for remark in result.remarks:
            notice(f"{escaped(result.path.name)}: {remark}")
        # Show this error once: on a read-only disk it is the same for all snapshots.
        if record_error not in {"", self._record_error}:
            self._record_error = record_error
            notice(record_error)


class _Display(contextlib.AbstractContextManager["_Display"]):
    """Shows the progress of verifying one snapshot; a context manager."""

    def __init__(self, name: str, *, quick: bool, quiet: bool) -> None:
        self._title = f"verifying {escaped(name)}"
        self._quick = quick
        self._quiet = quiet
        self._stack = contextlib.ExitStack()
        self._progress: MailProgress | None = None

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def started(self, description: Description | None) -> None:
        """Show a progress bar if the number of mails is known."""
        if self._quiet or description is None:
            return
        size = None if self._quick else description.bytes
        bar = MailProgress(self._title, description.mails, size)
        self._progress = self._stack.enter_context(bar)

    def checked(self, mails: int, size: int) -> None:
        if self._progress is not None:
            self._progress.advance(mails, size)


def _record(result: VerifyResult) -> str:
    """Record the outcome in DEST, if DEST is known. Return an error message, or an empty string."""
    try:
        destination = repository_of(result.path)
        if destination is not None:
            when = datetime.now(UTC).replace(microsecond=0)
            verification = Verification(when, result.outcome, result.quick)
            save_verification(destination.path, result.path.name, verification)
    except StorageError as error:
        return escaped(str(error))
    return ""


def _summary(results: Sequence[VerifyResult]) -> str:
    name = escaped(results[0].path.name) if len(results) == 1 else f"{len(results):,} snapshots"
    mails = sum(result.mails for result in results)
    files = sum(result.files for result in results)
    size = format_size(sum(result.bytes_read for result in results))
    how = "no content read" if results[0].quick else f"{size} read"
    different = any(result.findings for result in results)
    outcome = format_counts(results) if different else "no differences"
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
            {"kind": finding.kind, "path": escaped(finding.path), "detail": escaped(finding.detail)}
            for finding in result.findings
        ],
        "remarks": remarks,
    }
