"""`jmapfs status`: asking running mounts how they are, and showing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from jmapfs.cli.options import directory_type, format_size
from jmapfs.control.mounts import mounts, require_mount, resolve, socket_directory, socket_name
from jmapfs.control.socket_client import ask
from jmapfs.errors import NotMountedError


@click.command("status")
@click.argument("mountpoint", type=directory_type, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status_command(mountpoint: Path | None, *, as_json: bool) -> None:
    """Show the status of one mount, or of all mounts."""
    statuses = all_statuses() if mountpoint is None else [status_of(resolve(mountpoint))]
    if as_json:
        click.echo(json.dumps(statuses if mountpoint is None else statuses[0], indent=2))
    else:
        show(statuses)


def status_of(mountpoint: Path) -> dict[str, Any]:
    """Return the status of the mount at a resolved path.

    Raises:
        NotMountedError: nothing of ours is mounted there, or its daemon does not answer.
    """
    require_mount(mountpoint)
    try:
        status: dict[str, Any] = ask(socket_directory(), socket_name(mountpoint), "status")
    except NotMountedError as error:
        raise NotMountedError(f"{mountpoint}: {error}") from error
    return status


def all_statuses() -> list[dict[str, Any]]:
    """Return the status of each mount of ours; one whose daemon is gone has an `error`."""
    statuses = []
    for mount in mounts():
        if not mount.ours:
            continue
        try:
            statuses.append(status_of(mount.mountpoint))
        except NotMountedError as error:
            statuses.append({"mountpoint": str(mount.mountpoint), "error": str(error)})
    return statuses


def show(statuses: list[dict[str, Any]]) -> None:
    """Print statuses for people."""
    console = Console(highlight=False, soft_wrap=True)
    if not statuses:
        console.print("nothing is mounted")
    for status in statuses:
        table = Table(show_header=False, box=None, title=status["mountpoint"], title_justify="left")
        for name, value in _lines(status):
            table.add_row(name, value)
        console.print(table)


def _lines(status: dict[str, Any]) -> list[tuple[str, str]]:
    if "pid" not in status:
        return [("error", status["error"])]
    lines = []
    for account in status.get("accounts", [status]):
        lines += _account_lines(account)
    if status["frozen"]:
        since, until = status["frozen"]["since"], status["frozen"]["until"]
        end = f"until {until}" if until else "for as long as somebody holds it"
        lines.append(("frozen", f"since {since}, {end}"))
    fuse = ", ".join(f"{count} {name}" for name, count in status["fuse"].items())
    return [*lines, ("files", fuse or "not used yet")]


def _account_lines(status: dict[str, Any]) -> list[tuple[str, str]]:
    cache, http = status["cache"], status["http"]
    cached = format_size(cache["bytes"])
    online = "yes" if status["online"] else f"no, since {status['since']}"
    if status["error"]:
        online += f": {status['error']}"
    return [
        ("account", f"{status['account']} at {status['server']}"),
        ("online", online),
        ("last change", status["last_sync"]),
        ("last check", status["last_check"] or "never"),
        ("emails", f"{status['emails']} in {status['mailboxes']} mailboxes"),
        ("cache", f"{cached} of {format_size(cache['limit'])}, {cache['blobs']} mails"),
        (
            "network",
            f"{http['requests']} requests, {http['blobs']} mails, {format_size(http['bytes'])}",
        ),
    ]
