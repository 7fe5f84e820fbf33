"""The commands about mounts, and `accounts`, which tells what can be mounted.

`jmapfs accounts`: which accounts a user can see.

`jmapfs mount`: from the command line to a running daemon.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from jmapfs.account import mail_accounts
from jmapfs.cli import freeze_command as freezing
from jmapfs.cli import status_command as showing
from jmapfs.cli.config import account_source, read_config
from jmapfs.cli.options import (
    DurationParameter,
    SizeParameter,
    account_option,
    cache_directory_option,
)
from jmapfs.cli.output import MountDisplay
from jmapfs.cli.signals import run_with_signals
from jmapfs.control.mounts import resolve
from jmapfs.daemon.daemon import Stopped, run_daemon
from jmapfs.daemon.mountpoint import check_mountpoint
from jmapfs.daemon.startup import (
    MountRequest,
    PipeStartupReport,
    log_path,
    log_to_file,
    log_to_stderr,
    parse_options,
    run_in_background,
)
from jmapfs.errors import JmapfsError, UsageError


def accounts_of(argument: str) -> list[dict[str, Any]]:
    """Return the accounts with mail, the primary one first, as JSON can hold them.

    Raises:
        JmapfsError: the server cannot be asked.
    """
    source = account_source(argument, read_config())
    accounts = run_with_signals(partial(mail_accounts, source))
    return [
        {
            "id": account.id,
            "name": account.name,
            "personal": account.is_personal,
            "read_only": account.is_read_only,
        }
        for account in accounts
    ]


def show(accounts: list[dict[str, Any]]) -> None:
    """Print accounts for people."""
    table = Table(box=None)
    for heading in ("NAME", "ID", "WHOSE"):
        table.add_column(heading)
    for account in accounts:
        table.add_row(account["name"], account["id"], "own" if account["personal"] else "shared")
    Console(highlight=False, soft_wrap=True, markup=False).print(table)


_log = logging.getLogger(__name__)


def mount_request(
    account: str,
    mountpoint: Path,
    *,
    options: Iterable[str],
    selection: str | None,
    cache_dir: Path,
    cache_size: int,
    poll_interval: float,
    all_accounts: bool,
) -> MountRequest:
    """Put together what is to be mounted; secrets are fetched here, while there is a terminal.

    Raises:
        UsageError: an option is not right.
        ConfigError: the account, or its secret, is not to be had.
    """
    mount_options = parse_options(options)
    if all_accounts and selection is not None:
        raise UsageError("--account NAME and --all-accounts exclude each other")
    return MountRequest(
        source=account_source(account, read_config(), account=selection),
        mountpoint=resolve(mountpoint),
        cache_root=cache_dir.absolute(),
        cache_limit=cache_size,
        options=mount_options,
        poll_interval=poll_interval,
        all_accounts=all_accounts,
    )


def mount(request: MountRequest, *, foreground: bool, verbose: bool) -> None:
    """Mount, and return when the tree is there; in the foreground, when it is gone again.

    Raises:
        JmapfsError: it cannot be mounted.
        KeyboardInterrupt: Ctrl-C before it was mounted.
    """
    with MountDisplay() as display:
        if foreground:
            log_to_stderr(verbose=verbose)
            try:
                run_daemon(request, display)
            except Stopped:
                raise KeyboardInterrupt from None
            return
        check_mountpoint(request.mountpoint, request.cache_root)

        def daemon(report: PipeStartupReport) -> int:
            try:
                log_to_file(log_path(request.mountpoint), verbose=verbose)
                run_daemon(request, report)
            except (JmapfsError, Stopped) as error:
                _log.error("not mounted, or not any more: %s", error)
                report.failed(error)
                return getattr(error, "exit_code", 1)
            except BaseException as error:  # noqa: BLE001 - logged, and the process ends here
                _log.critical("the daemon ends because of a bug", exc_info=True)
                report.failed(error)
                return 1
            return 0

        run_in_background(daemon, display)


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
    type=SizeParameter(),
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
    request = mount_request(
        account,
        mountpoint,
        options=options,
        selection=selection,
        cache_dir=cache_dir,
        cache_size=cache_size,
        poll_interval=poll_interval,
        all_accounts=all_accounts,
    )
    mount(request, foreground=foreground, verbose=verbose)


@click.command("umount")
@click.argument("mountpoint", type=_DIRECTORY)
def umount_command(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT, and wait until its daemon has ended."""
    from jmapfs.daemon.mountpoint import unmount

    unmount(resolve(mountpoint))


@click.command("sync")
@click.argument("mountpoint", type=_DIRECTORY)
def sync_command(mountpoint: Path) -> None:
    """Ask the server for changes now; return when MOUNTPOINT shows them."""
    freezing.sync(resolve(mountpoint))


@click.command("freeze", context_settings={"ignore_unknown_options": True})
@click.argument("mountpoint", type=_DIRECTORY)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--timeout",
    type=DurationParameter(),
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
        sys.exit(freezing.run_frozen(resolve(mountpoint), timeout, command))
    freezing.freeze(resolve(mountpoint), timeout)


@click.command("thaw")
@click.argument("mountpoint", type=_DIRECTORY)
def thaw_command(mountpoint: Path) -> None:
    """End a freeze: MOUNTPOINT follows the account again."""
    freezing.thaw(resolve(mountpoint))


@click.command("prefetch")
@click.argument("paths", type=_DIRECTORY, metavar="PATH…", nargs=-1, required=True)
def prefetch_command(paths: tuple[Path, ...]) -> None:
    """Fetch all mail below PATH, a mountpoint or a directory or mail in it, into the cache.

    Ahead of a flight, or of a backup. What is cached already is not fetched again, so it can be
    interrupted at any time, and goes on when it is begun again.
    """
    from jmapfs.cli import prefetch_command as prefetching

    click.echo(prefetching.prefetch(paths))


@click.command("accounts")
@click.argument("account")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def accounts_command(account: str, *, as_json: bool) -> None:
    """List the accounts with mail that the user of ACCOUNT can see."""
    accounts = accounts_of(account)
    if as_json:
        click.echo(json.dumps(accounts, indent=2))
    else:
        show(accounts)


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
