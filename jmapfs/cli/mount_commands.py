"""The commands about mounts, and `accounts`, which tells what can be mounted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from jmapfs.cli import asking, listing, showing
from jmapfs.cli.options import account_option, cache_directory_option
from jmapfs.cli.quantities import Duration, Size
from jmapfs.control import resolve

_DIRECTORY = click.Path(path_type=Path)


@click.command("mount")
@click.argument("account")
@click.argument("mountpoint", type=_DIRECTORY)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; log to stderr.")
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPT[,OPT…]",
    help="Mount options: allow_other, allow_root, uid=N, gid=N, umask=N, fsname=NAME.",
)
@account_option
@cache_directory_option
@click.option(
    "--cache-size",
    type=Size(),
    default="10G",
    show_default=True,
    help="How much mail to keep, at most; 0 for none.",
)
@click.option(
    "--poll-interval",
    type=click.FloatRange(min=1),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="How often to ask for changes where the server does not tell of them.",
)
@click.option(
    "--all-accounts", is_flag=True, help="Show all accounts the user can see, a directory each."
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def mount_command(
    account: str,
    mountpoint: Path,
    options: tuple[str, ...],
    selection: str | None,
    cache_dir: Path,
    cache_size: int,
    poll_interval: float,
    *,
    all_accounts: bool,
    foreground: bool,
    verbose: bool,
) -> None:
    """Mount ACCOUNT at MOUNTPOINT, an empty directory.

    ACCOUNT is an account of the configuration file, or a session URL, a host or a mail address;
    then the environment has JMAPFS_USERNAME and JMAPFS_PASSWORD, or JMAPFS_TOKEN. The command
    returns when the whole tree is there.
    """
    from jmapfs.cli import mounting  # noqa: PLC0415 - needs FUSE, which others do without

    request = mounting.mount_request(
        account,
        mountpoint,
        options=options,
        selection=selection,
        cache_dir=cache_dir,
        cache_size=cache_size,
        poll_interval=poll_interval,
        all_accounts=all_accounts,
    )
    mounting.mount(request, foreground=foreground, verbose=verbose)


@click.command("umount")
@click.argument("mountpoint", type=_DIRECTORY)
def umount_command(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT, and wait until its daemon has ended."""
    from jmapfs.mount import unmount  # noqa: PLC0415 - needs FUSE, which others do without

    unmount(resolve(mountpoint))


@click.command("sync")
@click.argument("mountpoint", type=_DIRECTORY)
def sync_command(mountpoint: Path) -> None:
    """Ask the server for changes now; return when MOUNTPOINT shows them."""
    asking.sync(resolve(mountpoint))


@click.command("freeze", context_settings={"ignore_unknown_options": True})
@click.argument("mountpoint", type=_DIRECTORY)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--timeout",
    type=Duration(),
    default="2h",
    show_default=True,
    help="When it ends by itself: 30s, 10m, 2h, 1d.",
)
def freeze_command(mountpoint: Path, command: tuple[str, ...], timeout: float) -> None:
    """Hold MOUNTPOINT at one state, for a backup, while changes go on behind it.

    With a COMMAND (jmapfs freeze MOUNTPOINT -- borg create …) hold it while that runs, and exit
    with its exit code; without, until `jmapfs thaw`.
    """
    if command:
        sys.exit(asking.run_frozen(resolve(mountpoint), timeout, command))
    asking.freeze(resolve(mountpoint), timeout)


@click.command("thaw")
@click.argument("mountpoint", type=_DIRECTORY)
def thaw_command(mountpoint: Path) -> None:
    """End a freeze: MOUNTPOINT follows the account again."""
    asking.thaw(resolve(mountpoint))


@click.command("prefetch")
@click.argument("paths", type=_DIRECTORY, metavar="PATH…", nargs=-1, required=True)
def prefetch_command(paths: tuple[Path, ...]) -> None:
    """Fetch all mail below PATH, a mountpoint or a directory or mail in it, into the cache.

    Ahead of a flight, or of a backup. What is cached already is not fetched again, so it can be
    interrupted at any time, and goes on when it is begun again.
    """
    from jmapfs.cli import prefetching  # noqa: PLC0415 - needs FUSE, which others do without

    click.echo(prefetching.prefetch(paths))


@click.command("accounts")
@click.argument("account")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def accounts_command(account: str, *, as_json: bool) -> None:
    """List the accounts with mail that the user of ACCOUNT can see."""
    accounts = listing.accounts_of(account)
    if as_json:
        click.echo(json.dumps(accounts, indent=2))
    else:
        listing.show(accounts)


@click.command("status")
@click.argument("mountpoint", type=_DIRECTORY, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print all there is to know, as JSON.")
def status_command(mountpoint: Path | None, *, as_json: bool) -> None:
    """Show how a mount is doing, or all of them."""
    statuses: list[dict[str, Any]] | dict[str, Any]
    if mountpoint is None:
        statuses = showing.all_statuses()
    else:
        statuses = showing.status_of(resolve(mountpoint))
    if as_json:
        click.echo(json.dumps(statuses, indent=2))
    else:
        showing.show(statuses if isinstance(statuses, list) else [statuses])


ALL: Final[Sequence[click.Command]] = (
    mount_command,
    umount_command,
    sync_command,
    freeze_command,
    thaw_command,
    prefetch_command,
    accounts_command,
    status_command,
)
