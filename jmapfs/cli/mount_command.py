"""`jmapfs mount` and `accounts`.

Only `mount` needs FUSE, so only that command imports the daemon, when it runs.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import click

from jmapfs.account import mail_accounts
from jmapfs.cli.config import account_source, read_config
from jmapfs.cli.options import (
    SizeParameter,
    account_option,
    cache_directory_option,
    mountpoint_argument,
)
from jmapfs.cli.output import print_json, print_table, show_waiting
from jmapfs.cli.progress import MountDisplay
from jmapfs.cli.signals import run_with_signals
from jmapfs.control.mounts import is_automount, resolve
from jmapfs.daemon.mountpoint import check_mountpoint
from jmapfs.daemon.request import MountRequest, parse_options
from jmapfs.daemon.startup import (
    PipeStartupReport,
    log_path,
    log_to_file,
    log_to_stderr,
    run_in_background,
)
from jmapfs.errors import JmapfsError, UsageError
from jmapfs.protection import clear_environment

_log = logging.getLogger(__name__)


@click.command("mount")
@click.argument("account")
@mountpoint_argument
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
    help="Keep at most this much mail in the cache; 0 for none.",
)
@click.option(
    "--poll-interval",
    type=click.FloatRange(min=1),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Ask the server for changes this often if it does not push them.",
)
@click.option(
    "--all-accounts",
    is_flag=True,
    help="Show all accounts that the user can see, one directory for each.",
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

    ACCOUNT is an account in the configuration file. It can also be a session URL, a host or a mail
    address; then set JMAPFS_USERNAME and JMAPFS_PASSWORD, or JMAPFS_TOKEN, in the environment. A
    mail address is its own user name. The command returns when the whole tree is mounted.
    """
    mount_options = parse_options(options)
    if all_accounts and selection is not None:
        raise UsageError("--account NAME and --all-accounts exclude each other: use one of them")
    request = MountRequest(
        # Get the secret now: the command that prints it may need a terminal, and a daemon has none.
        source=account_source(account, read_config(), account=selection),
        mountpoint=resolve(mountpoint),
        cache_root=cache_dir.absolute(),
        cache_limit=cache_size,
        options=mount_options,
        poll_interval=poll_interval,
        all_accounts=all_accounts,
    )
    # libfuse runs fusermount3, which inherits the environment.
    clear_environment()
    _mount(request, foreground=foreground, verbose=verbose)


def _mount(request: MountRequest, *, foreground: bool, verbose: bool) -> None:
    """Mount an account. In the foreground, return when the mount has been unmounted.

    Raises KeyboardInterrupt if Ctrl-C is pressed before the account is mounted.
    """
    from jmapfs.daemon.daemon import Stopped, run_daemon  # noqa: PLC0415 - needs FUSE

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
                _log.error("the daemon ends: %s", error)
                report.failed(error)
                return getattr(error, "exit_code", 1)
            except BaseException as error:  # noqa: BLE001 - logged, and the process ends here
                _log.critical("the daemon ends because of a bug", exc_info=True)
                report.failed(error)
                return 1
            return 0

        # Until an automount is complete, the kernel stops other process groups at the mountpoint.
        run_in_background(daemon, display, joins_group=is_automount(request.mountpoint))


@click.command("accounts")
@click.argument("account")
@click.option("--json", "as_json", is_flag=True, help="Print the accounts as JSON.")
def accounts_command(account: str, *, as_json: bool) -> None:
    """List the accounts with mail that the user of ACCOUNT can see."""
    source = account_source(account, read_config())
    accounts: list[dict[str, Any]] = [
        {
            "id": account.id,
            "name": account.name,
            "personal": account.is_personal,
            "read_only": account.is_read_only,
        }
        for account in run_with_signals(partial(mail_accounts, source, show_waiting))
    ]
    if as_json:
        print_json(accounts)
        return
    rows = [(one["name"], one["id"], "own" if one["personal"] else "shared") for one in accounts]
    print_table([("NAME", "ID", "WHOSE"), *rows])
