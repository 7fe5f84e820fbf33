"""`jmapfs`: the commands and their options.

Errors that were foreseen are one line on stderr and their exit code (see `jmapfs.errors`); what
was not is a bug, with its traceback.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from jmapfs import __version__
from jmapfs.cli import asking, listing, mounting, prefetching, showing
from jmapfs.cli.display import console
from jmapfs.cli.quantities import Duration, Size
from jmapfs.errors import JmapfsError
from jmapfs.mount import default_cache_root, resolve, unmount

INTERRUPTED = 130

_DIRECTORY = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="jmapfs")
def cli() -> None:
    """Mount a JMAP mail account as a read-only file tree."""


@cli.command("mount")
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
@click.option(
    "--account", "selection", metavar="NAME", help="Another of the accounts the user can see."
)
@click.option(
    "--cache-dir",
    type=_DIRECTORY,
    default=default_cache_root,
    help="Where index and mail are kept.  [default: $XDG_CACHE_HOME/jmapfs]",
)
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


@cli.command("umount")
@click.argument("mountpoint", type=_DIRECTORY)
def umount_command(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT, and wait until its daemon has ended."""
    unmount(resolve(mountpoint))


@cli.command("sync")
@click.argument("mountpoint", type=_DIRECTORY)
def sync_command(mountpoint: Path) -> None:
    """Ask the server for changes now; return when MOUNTPOINT shows them."""
    asking.sync(resolve(mountpoint))


@cli.command("freeze", context_settings={"ignore_unknown_options": True})
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


@cli.command("thaw")
@click.argument("mountpoint", type=_DIRECTORY)
def thaw_command(mountpoint: Path) -> None:
    """End a freeze: MOUNTPOINT follows the account again."""
    asking.thaw(resolve(mountpoint))


@cli.command("prefetch")
@click.argument("paths", type=_DIRECTORY, metavar="PATH…", nargs=-1, required=True)
def prefetch_command(paths: tuple[Path, ...]) -> None:
    """Fetch all mail below PATH, a mountpoint or a directory or mail in it, into the cache.

    Ahead of a flight, or of a backup. What is cached already is not fetched again, so it can be
    interrupted at any time, and goes on when it is begun again.
    """
    click.echo(prefetching.prefetch(paths))


@cli.command("accounts")
@click.argument("account")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def accounts_command(account: str, *, as_json: bool) -> None:
    """List the accounts with mail that the user of ACCOUNT can see."""
    accounts = listing.accounts_of(account)
    if as_json:
        click.echo(json.dumps(accounts, indent=2))
    else:
        listing.show(accounts)


@cli.command("status")
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


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        sys.exit(cli.main(standalone_mode=False))
    except JmapfsError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", INTERRUPTED)


def _fail(message: str, exit_code: int) -> NoReturn:
    console.print(f"jmapfs: {message}", markup=False)
    sys.exit(exit_code)
