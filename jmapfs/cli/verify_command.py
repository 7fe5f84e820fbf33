"""`jmapfs verify`: shows the progress and the findings, and records the outcome in DEST."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from jmapfs.account import AccountSource
from jmapfs.cli.config import account_source, read_config
from jmapfs.cli.log import show_errors_only
from jmapfs.cli.options import account_option, directory_type, format_size
from jmapfs.cli.output import notice, print_json, print_line, show_waiting
from jmapfs.cli.progress import MailProgress
from jmapfs.cli.signals import run_with_signals
from jmapfs.errors import (
    AlteredFilesError,
    JmapfsError,
    MissingFilesError,
    OutputError,
    StorageError,
    UsageError,
)
from jmapfs.snapshot.manifest import Description, is_intact, read_description
from jmapfs.snapshot.online import OnlineComparison
from jmapfs.snapshot.repository import origin_text, repository_of
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
from jmapfs.text import escaped


@click.command("verify")
@click.argument("place", metavar="DEST[/DATE]", type=directory_type)
@click.option("--quick", is_flag=True, help="Check names and sizes only; do not read the mail.")
@click.option(
    "--online",
    metavar="ACCOUNT",
    help="Also compare the mail with the digests of the server. No mail is downloaded.",
)
@account_option
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print findings and errors only.")
def verify_command(
    place: Path,
    online: str | None,
    selection: str | None,
    *,
    quick: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare one snapshot, or all in DEST, with their checksums.

    Each altered, missing or extra file is printed on one line. The exit code is 11 if a file is
    altered; otherwise 12 if one is missing; otherwise 13 if there is an extra one. The command
    needs neither the server nor the other snapshots, so it also verifies a copy of one snapshot.

    With --online ACCOUNT, the mail is also compared with what the server has.
    """
    if quiet:
        show_errors_only()
    if online is None and selection is not None:
        raise UsageError("--account belongs to --online ACCOUNT, which is missing")
    directories = snapshots_at(place)
    account = None if online is None else account_source(online, read_config(), account=selection)
    run = _VerifyRun(quick=quick, as_json=as_json, quiet=quiet)
    try:
        run_with_signals(partial(run.verify_all, directories, account))
    except OutputError:
        raise
    except JmapfsError as error:
        # The findings so far are still shown.
        run.fail(error)
    run.finish()


class _VerifyRun:
    """The findings so far. A file that several snapshots share is read once."""

    def __init__(self, *, quick: bool, as_json: bool, quiet: bool) -> None:
        self._quick = quick
        self._as_json = as_json
        self._quiet = quiet
        self._inodes = InodeCache()
        self._results: list[VerifyResult] = []
        self._failure: JmapfsError | None = None
        self._record_error = ""
        self._documents: list[dict[str, Any]] = []

    async def verify_all(self, directories: Sequence[Path], account: AccountSource | None) -> None:
        """Verify snapshots; with an `account`, also compare them with its server."""
        async with _comparison(account) as comparison:
            comparable: frozenset[Path] = frozenset()
            if comparison is not None:
                comparable = await trio.to_thread.run_sync(_comparable, comparison, directories)
            for directory in directories:
                await self._verify(directory, comparison if directory in comparable else None)

    async def _verify(self, directory: Path, comparison: OnlineComparison | None) -> None:
        """Verify a snapshot, record the outcome, and show the findings."""
        name, quiet = directory.name, self._quiet
        result: VerifyResult | None = None
        try:
            with _Display(
                f"verifying {name}", counts_bytes=not self._quick, quiet=quiet
            ) as display:
                result = await verify(
                    directory, quick=self._quick, inodes=self._inodes, progress=display
                )
            if comparison is not None:
                title = f"comparing {name} with the server"
                with _Display(title, counts_bytes=False, quiet=quiet) as display:
                    result = await _compare(result, comparison, display)
        except StorageError as error:
            # This snapshot may have been pruned meanwhile. The others can still be verified.
            self.fail(error)
            self._documents.append({"path": escaped(str(directory)), "error": escaped(str(error))})
            return
        finally:
            # The server may have failed.
            if result is not None:
                await self._add(result)

    async def _add(self, result: VerifyResult) -> None:
        self._results.append(result)
        record_error = await trio.to_thread.run_sync(_record, result)
        if self._as_json:
            remarks = [*result.remarks, *([record_error] if record_error else [])]
            self._documents.append(_document(result, remarks))
        else:
            self._show(result, record_error)

    def fail(self, error: JmapfsError) -> None:
        """Note an error that is not a finding. The last one becomes the error of the command."""
        if self._failure is not None:
            notice(str(self._failure))
        self._failure = error

    def finish(self) -> None:
        """Show the summary. Raises JmapfsError if something is wrong with a snapshot."""
        error = error_for(self._results)
        if self._as_json:
            print_json({"snapshots": self._documents})
        elif self._results and not self._quiet:
            print_line(_summary(self._results))
        if error is None:
            error = self._failure
        elif self._failure is not None:
            notice(str(self._failure))
        if error is not None:
            raise error

    def _show(self, result: VerifyResult, record_error: str) -> None:
        for finding in result.findings:
            path = f"{result.path.name}/{finding.path}"
            print_line(f"{finding.kind:7}  {path}: {finding.detail}")
        if self._quiet:
            return
        for remark in result.remarks:
            notice(f"{result.path.name}: {remark}")
        # Show this error once: on a read-only disk it is the same for all snapshots.
        if record_error not in {"", self._record_error}:
            self._record_error = record_error
            notice(record_error)


class _Display(contextlib.AbstractContextManager["_Display"]):
    """Shows the progress of work on one snapshot; a context manager."""

    def __init__(self, title: str, *, counts_bytes: bool, quiet: bool) -> None:
        self._title = title
        self._counts_bytes = counts_bytes
        self._quiet = quiet
        self._stack = contextlib.ExitStack()
        self._progress: MailProgress | None = None

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def started(self, description: Description | None) -> None:
        """Show a progress bar if the number of mails is known."""
        if self._quiet or description is None:
            return
        size = description.bytes if self._counts_bytes else None
        bar = MailProgress(self._title, description.mails, size)
        self._progress = self._stack.enter_context(bar)

    def checked(self, mails: int, size: int) -> None:
        if self._progress is not None:
            self._progress.advance(mails, size)


@contextlib.asynccontextmanager
async def _comparison(account: AccountSource | None) -> AsyncIterator[OnlineComparison | None]:
    if account is None:
        yield None
        return
    async with account.connect(on_wait=show_waiting) as client:
        yield OnlineComparison(client)


def _comparable(comparison: OnlineComparison, directories: Sequence[Path]) -> frozenset[Path]:
    """Return the snapshots of the account, and those that no one can describe.

    Snapshots of an account that was replaced (`jmapfs snapshot --adopt`) are left out. Raises
    ConfigError if the newest snapshot belongs to another account.
    """
    comparable = set(directories)
    for directory in reversed(directories):
        # A snapshot without a valid description is a finding later.
        with contextlib.suppress(AlteredFilesError, MissingFilesError, StorageError):
            origin = read_description(directory).origin
            if not comparison.is_comparable(origin):
                comparable.remove(directory)
                if directory == directories[-1]:
                    raise comparison.other_account(origin, directory.name)
                notice(
                    f"{directory.name} is not compared with the server: it is a snapshot of"
                    f" {origin_text(origin)}"
                )
    return frozenset(comparable)


async def _compare(
    result: VerifyResult, comparison: OnlineComparison, display: _Display
) -> VerifyResult:
    """Return the result of verifying a snapshot with the findings of comparing it."""
    if not await trio.to_thread.run_sync(is_intact, result.path):
        remark = "not compared with the server: the lists of its files are damaged"
        return dataclasses.replace(result, remarks=[*result.remarks, remark])
    description = await trio.to_thread.run_sync(read_description, result.path)
    display.started(description)
    online = await comparison.compare(result.path, partial(display.checked, size=0))
    known = {finding.path for finding in result.findings}
    new = [finding for finding in online.findings if finding.path not in known]
    return dataclasses.replace(
        result,
        findings=sorted([*result.findings, *new]),
        remarks=[*result.remarks, *online.remarks()],
        online=online,
    )


def _record(result: VerifyResult) -> str:
    """Record the outcome in DEST, if DEST is known. Return an error message, or an empty string."""
    try:
        destination = repository_of(result.path)
        if destination is not None:
            when = datetime.now(UTC).replace(microsecond=0)
            verification = Verification(
                when, result.outcome, result.quick, online=result.online is not None
            )
            save_verification(destination.path, result.path.name, verification)
    except StorageError as error:
        return escaped(str(error))
    return ""


def _summary(results: Sequence[VerifyResult]) -> str:
    name = results[0].path.name if len(results) == 1 else f"{len(results):,} snapshots"
    mails = sum(result.mails for result in results)
    files = sum(result.files for result in results)
    size = format_size(sum(result.bytes_read for result in results))
    how = "no content read" if results[0].quick else f"{size} read"
    online = [result.online for result in results if result.online is not None]
    if online:
        how += f", {sum(one.compared for one in online):,} compared with the server"
    different = any(result.findings for result in results)
    outcome = format_counts(results) if different else "no differences"
    return f"{name}: {mails:,} mails in {files:,} files, {how}: {outcome}"


def _document(result: VerifyResult, remarks: Sequence[str]) -> dict[str, Any]:
    counts, online = result.counts(), result.online
    document: dict[str, Any] = {
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
    if online is not None:
        document["online"] = {
            "compared": online.compared,
            "gone": online.gone,
            "undigested": online.undigested,
        }
    return document
