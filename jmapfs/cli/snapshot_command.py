"""`jmapfs snapshot`: copies a mount or an account into a dated directory."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import msgspec

from jmapfs.account import AccountSource
from jmapfs.cli.config import Config, account_source, is_path, read_config
from jmapfs.cli.log import show_errors_only
from jmapfs.cli.options import (
    account_option,
    cache_directory_option,
    destination_argument,
    format_size,
)
from jmapfs.cli.output import notice, print_json, print_line
from jmapfs.cli.progress import SnapshotDisplay
from jmapfs.cli.signals import run_with_signals
from jmapfs.control.mounts import Mount, mount_of, require_readable
from jmapfs.control.socket_client import require_answer
from jmapfs.errors import IncompleteError, NotMountedError, UsageError, storage_errors
from jmapfs.snapshot.create import FailedDownloadsError, create_snapshot
from jmapfs.snapshot.from_account import account_opener
from jmapfs.snapshot.from_mount import MountOpener
from jmapfs.snapshot.known import is_known, remember
from jmapfs.snapshot.manifest import MISSING, count_mails
from jmapfs.snapshot.missing import SHOWN, MissingMail, read_missing
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary, SourceOpener

_Opening = AbstractAsyncContextManager[SourceOpener]


@click.command("snapshot")
@click.argument("source")
@destination_argument
@click.option(
    "--max-gone",
    type=click.FloatRange(0, 100),
    default=50,
    show_default=True,
    metavar="PERCENT",
    help="Make no snapshot if more of the last snapshot's mail than this is gone.",
)
@click.option(
    "--allow-stale", is_flag=True, help="Copy an older state if the current one is not available."
)
@click.option(
    "--skip-bad",
    is_flag=True,
    help="Make the snapshot without mail that cannot be downloaded (exit code 15).",
)
@click.option(
    "--adopt",
    is_flag=True,
    help="Continue a DEST that has snapshots of another account.",
)
@click.option(
    "--force-destination",
    is_flag=True,
    help="Begin snapshots in a DEST that has other files, or that had snapshots before.",
)
@click.option(
    "--check",
    "checks",
    is_flag=True,
    help="Compare all mail with the digests of the server; SOURCE must be an account.",
)
@account_option
@cache_directory_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def snapshot_command(
    source: str,
    destination: Path,
    max_gone: float,
    selection: str | None,
    cache_dir: Path,
    *,
    allow_stale: bool,
    skip_bad: bool,
    adopt: bool,
    force_destination: bool,
    checks: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Copy the current mail of SOURCE into a directory of DEST.

    SOURCE is a mountpoint or a directory in a mount. It can also be an account, as in `jmapfs
    mount`, which need not be mounted. The name of the new directory is the current time. Mail that
    is in the last snapshot is linked, not fetched.

    Exit code 0 means that the snapshot is complete. Otherwise there is no new snapshot, and the
    next run continues with the mail that was already fetched. The exit code is 15 if some mail
    cannot be downloaded. This mail is then named. With --skip-bad, there is a snapshot without it.
    If the server counts more mail than it lists, there is a snapshot, and the exit code is 15 too.
    """
    if quiet:
        show_errors_only()
    require_answer(Path(source))
    mount = mount_of(Path(os.path.realpath(source)))
    _require_apart(destination, mount, cache_dir)
    repository = Repository(destination)
    repository.check_place()
    if not force_destination and is_known(destination) and not repository.is_begun():
        raise UsageError(
            f"{destination} had snapshots before, and has none now: is its disk mounted?"
            " --force-destination begins anew"
        )
    with SnapshotDisplay(quiet=quiet) as display:
        if mount is not None:
            require_readable(mount)
            if mount.root != "/":
                raise UsageError(
                    f"{mount.mountpoint} is a bind mount of a part: give the directory in the mount"
                )
            if selection is not None:
                raise UsageError(
                    "--account cannot be used with a mount: give the directory of the account"
                )
            if checks:
                raise UsageError(
                    "--check cannot be used with a mount, which has no digests: give the account"
                )
            path = Path(os.path.realpath(source)).relative_to(mount.mountpoint)
            inside = "" if path == Path() else str(path)
            opener = MountOpener(mount.mountpoint, inside, display, allow_stale)
            opening: _Opening = nullcontext(opener)
        else:
            account = _account(source, read_config(), selection)
            opening = account_opener(
                account,
                cache_dir.absolute(),
                display,
                allow_stale=allow_stale,
                max_gone=max_gone,
                checks=checks,
            )
        create = partial(
            create_snapshot,
            repository=repository,
            max_gone=max_gone,
            report=display,
            skip_bad=skip_bad,
            adopt=adopt,
            force=force_destination,
        )
        try:
            summary = run_with_signals(partial(_create, opening, create))
        except FailedDownloadsError as error:
            _show_failure(error, as_json=as_json)
            raise
    remember(destination)
    _show_summary(summary, as_json=as_json, quiet=quiet)


async def _create(
    opening: _Opening, create: Callable[[SourceOpener], Awaitable[SnapshotSummary]]
) -> SnapshotSummary:
    async with opening as opener:
        return await create(opener)


def _show_failure(error: FailedDownloadsError, *, as_json: bool) -> None:
    """Name the mails that cannot be downloaded."""
    if as_json:
        print_json({"error": str(error), **_missing_document(error.missing.path)})
    else:
        _show_missing(error.missing.first, error.missing.count, error.missing.path)


def _show_summary(summary: SnapshotSummary, *, as_json: bool, quiet: bool) -> None:
    """Show the summary. Raises IncompleteError if the snapshot is not complete."""
    path = Path(summary.path) / MISSING
    if as_json:
        document: dict[str, Any] = msgspec.to_builtins(summary)
        missing = _missing_document(path if summary.missing else None)
        print_json(document | missing)
    elif not quiet:
        print_line(_summary(summary))
    reasons = []
    if summary.missing:
        reasons.append(f"{count_mails(summary.missing)} cannot be downloaded")
        if not as_json:
            with storage_errors(path):
                _show_missing(list(islice(read_missing(path), SHOWN)), summary.missing, path)
    if summary.shortfall is not None:
        reasons.append(str(summary.shortfall))
    if reasons:
        raise IncompleteError(
            f"{summary.date} is incomplete: {', and '.join(reasons)}; the next run tries again"
        )


def _show_missing(first: Sequence[MissingMail], count: int, path: Path) -> None:
    for mail in first:
        notice(str(mail))
    rest = count - len(first)
    where = f"and {rest:,} more, all listed in" if rest else "these mails are listed in"
    notice(f"{where} {path}")


def _missing_document(path: Path | None) -> dict[str, Any]:
    """Return the members of the JSON document that name the mails that are missing."""
    if path is None:
        return {"missing": [], "missing_file": None}
    with storage_errors(path):
        missing = [
            {
                "files": mail.files,
                "email_id": mail.id,
                "blob_id": mail.blob_id,
                "reason": mail.reason,
            }
            for mail in read_missing(path)
        ]
    return {"missing": missing, "missing_file": str(path)}


def _require_apart(destination: Path, mount: Mount | None, cache_directory: Path) -> None:
    """Raise UsageError if the snapshots would be in the source, or where files get deleted."""
    if destination.is_relative_to(os.path.realpath(cache_directory)):
        raise UsageError(
            f"{destination} is in the cache ({cache_directory}), whose files may be deleted at any"
            " time: choose another destination"
        )
    if mount_of(destination) is not None:
        raise UsageError(
            f"{destination} is inside a mount of jmapfs, which is read-only: choose another"
            " destination"
        )
    if mount is not None and mount.mountpoint.is_relative_to(destination):
        raise UsageError(
            f"{destination} contains the mount {mount.mountpoint}: choose another destination"
        )


def _account(source: str, config: Config, selection: str | None) -> AccountSource:
    if source not in config.accounts:
        # Unlike Path.exists, this raises no error.
        if os.path.exists(source):  # noqa: PTH110
            raise NotMountedError(
                f"{source}: jmapfs is not mounted there; mount the account, or name it as SOURCE"
            )
        if is_path(source):
            raise NotMountedError(f"{source}: there is no such mount, and no account of this name")
    return account_source(source, config, account=selection)


def _summary(summary: SnapshotSummary) -> str:
    parts = [
        f"{summary.mails:,} mails ({format_size(summary.bytes)})",
        f"{summary.new:,} new",
        f"{summary.gone:,} gone",
        f"{summary.fetched:,} fetched ({format_size(summary.fetched_bytes)})",
    ]
    if summary.taken_over:
        parts.append(f"{summary.taken_over:,} taken over from an interrupted run")
    if summary.replaced:
        parts.append(f"{summary.replaced:,} replaced (the last snapshot has other content)")
    if summary.missing:
        parts.append(f"{summary.missing:,} missing")
    if summary.shortfall is not None:
        parts.append(f"{summary.shortfall.expected - summary.shortfall.found:,} not listed")
    return f"{summary.path}: {', '.join(parts)}, in {summary.seconds:.1f} s"
