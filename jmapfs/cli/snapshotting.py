"""`jmapfs snapshot`: from the command line to a dated directory, and a line on what is in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import click

from jmapfs.account import AccountSource
from jmapfs.cli.config import Config, read_config
from jmapfs.cli.display import console
from jmapfs.cli.escaping import json_document
from jmapfs.cli.interruption import run_interruptibly
from jmapfs.cli.options import account_option, cache_directory_option, destination_argument
from jmapfs.cli.quantities import readable
from jmapfs.cli.secrets import account_source
from jmapfs.cli.snapshot_display import SnapshotDisplay
from jmapfs.control import Mount, mount_of
from jmapfs.errors import NotMountedError, UsageError
from jmapfs.snapshot import (
    Destination,
    MountOpener,
    SourceOpener,
    Summary,
    account_opener,
    take_snapshot,
)


@click.command("snapshot")
@click.argument("source")
@destination_argument
@click.option(
    "--max-gone",
    type=click.FloatRange(0, 100),
    default=50,
    show_default=True,
    metavar="PERCENT",
    help="Make no snapshot if more than that of the last one's mail is gone.",
)
@click.option(
    "--allow-stale", is_flag=True, help="Copy an older state where none of now can be had."
)
@account_option
@cache_directory_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but what went wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def snapshot_command(
    source: str,
    destination: Path,
    max_gone: float,
    selection: str | None,
    cache_dir: Path,
    *,
    allow_stale: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Copy SOURCE, as it is now, into a directory of DEST with the time as its name.

    SOURCE is a mountpoint or a directory in a mount; or an account, as in `jmapfs mount`, which
    then need not be mounted. What the last snapshot in DEST has is linked, not fetched. Exit code
    0 means that everything is there; otherwise there is no new snapshot, and the next run goes on
    with what has come.
    """
    mount = mount_of(Path(os.path.realpath(source)))
    _require_apart(destination, mount)
    place = Destination(destination)
    with SnapshotDisplay(console, quiet=quiet) as display:
        if mount is not None:
            if selection is not None:
                raise UsageError("--account is for accounts: name the directory in the mount")
            path = _path_in(mount, source)
            opener = MountOpener(mount.mountpoint, path, display, allow_stale=allow_stale)
            summary = run_interruptibly(
                partial(take_snapshot, opener, place, max_gone=max_gone, report=display)
            )
        else:
            account = _account(source, read_config(), selection)
            opening = partial(
                account_opener, account, cache_dir.absolute(), display, allow_stale=allow_stale
            )
            summary = run_interruptibly(partial(_of_account, opening, place, max_gone, display))
    if as_json:
        click.echo(json_document(summary))
    elif not quiet:
        click.echo(_line(summary))


async def _of_account(
    opening: Callable[[], AbstractAsyncContextManager[SourceOpener]],
    place: Destination,
    max_gone: float,
    display: SnapshotDisplay,
) -> Summary:
    async with opening() as opener:
        return await take_snapshot(opener, place, max_gone=max_gone, report=display)


def _path_in(mount: Mount, source: str) -> str:
    path = Path(os.path.realpath(source)).relative_to(mount.mountpoint)
    return "" if path == Path() else str(path)


def _account(source: str, config: Config, selection: str | None) -> AccountSource:
    if source not in config.accounts and Path(source).exists():
        raise NotMountedError(f"{source}: jmapfs is not mounted there")
    return account_source(source, config, account=selection)


def _require_apart(place: Path, mount: Mount | None) -> None:
    """Refuse a destination in a mount, and one that the mount that is copied lies in."""
    if mount_of(place) is not None:
        raise UsageError(f"{place} lies in a mount of jmapfs, which is read-only: choose another")
    if mount is not None and mount.mountpoint.is_relative_to(place):
        raise UsageError(f"{mount.mountpoint} lies in {place}: choose another destination")


def _line(summary: Summary) -> str:
    parts = [
        f"{summary.mails:,} mails ({readable(summary.bytes)})",
        f"{summary.new:,} new",
        f"{summary.gone:,} gone",
        f"{summary.fetched:,} fetched ({readable(summary.fetched_bytes)})",
    ]
    if summary.taken_over:
        parts.append(f"{summary.taken_over:,} taken over from an interrupted run")
    return f"{summary.path}: {', '.join(parts)}, in {summary.seconds:.1f} s"
