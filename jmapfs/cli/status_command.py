"""`jmapfs status`: the status of running mounts, as JSON or for people."""

import os
from pathlib import Path
from typing import Any, Final

import click

from jmapfs.cli.options import directory_type, format_size
from jmapfs.cli.output import columns, print_json, print_lines
from jmapfs.control.messages import (
    AccountStatus,
    ContentStatus,
    MountStatus,
    StaleStatus,
    StatusRequest,
)
from jmapfs.control.mounts import Mount, own_mounts, require_mount, resolve
from jmapfs.control.socket_client import ask_mount
from jmapfs.errors import JmapfsError

_ACCEPT_HINT: Final = (
    "the old mail is shown until it is back; if it is really gone: jmapfs sync --accept-deletions"
)

_SHOWN_BAD: Final = 10

_MountTable = tuple[str, list[tuple[str, str]]]  # the mountpoint; names with their values


@click.command("status")
@click.argument("mountpoint", type=directory_type, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status_command(mountpoint: Path | None, *, as_json: bool) -> None:
    """Show the status of one mount, or of all mounts."""
    if mountpoint is not None:
        mount = require_mount(resolve(mountpoint))
        status = ask_mount(mount, StatusRequest())
        if as_json:
            print_json(status.document() | _place(mount))
        else:
            _show([_table(mount, _lines(status))])
        return
    documents: list[dict[str, Any]] = []
    tables: list[_MountTable] = []
    for mount in own_mounts():
        try:
            status = ask_mount(mount, StatusRequest())
        except JmapfsError as error:
            documents.append(_place(mount) | {"error": str(error)})
            tables.append(_table(mount, [("error", str(error))]))
        else:
            documents.append(status.document() | _place(mount))
            tables.append(_table(mount, _lines(status)))
    if as_json:
        print_json(documents)
    else:
        _show(tables)


def _place(mount: Mount) -> dict[str, Any]:
    """Return where the mount is and whose it is, according to the kernel."""
    mountpoint = os.fsencode(mount.mountpoint).decode(errors="backslashreplace")
    return {"mountpoint": mountpoint, "owner": mount.owner_name}


def _table(mount: Mount, lines: list[tuple[str, str]]) -> _MountTable:
    place = _place(mount)
    return place["mountpoint"], [("owner", place["owner"]), *lines]


def _show(tables: list[_MountTable]) -> None:
    if not tables:
        print_lines(["nothing is mounted"])
    for mountpoint, lines in tables:
        print_lines([mountpoint, *(f" {line}" for line in columns(lines))])


def _lines(status: MountStatus) -> list[tuple[str, str]]:
    lines = []
    for account in status.accounts:
        lines += _account_lines(account)
    if status.frozen:
        until = status.frozen.until
        end = f"until {until}" if until else "until a process releases it"
        lines.append(("frozen", f"since {status.frozen.since}, {end}"))
    fuse = ", ".join(f"{count} {name}" for name, count in status.fuse.items())
    return [*lines, ("files", fuse or "not used yet")]


def _account_lines(status: AccountStatus) -> list[tuple[str, str]]:
    cache, http = status.cache, status.http
    online = "yes" if status.online else f"no, since {status.since}"
    if status.error:
        online += f": {status.error}"
    lines = [
        ("account", f"{status.account} at {status.server}"),
        ("online", online),
    ]
    if status.failures:
        times = "once" if status.failures == 1 else f"{status.failures} times in a row"
        lines.append(("failed", f"{times}, next try at {status.next_try}, or by jmapfs sync"))
    if status.waiting:
        lines.append(("waiting", status.waiting))
    if status.stale is not None:
        lines += [("stale", _stale_text(status.stale)), ("", _ACCEPT_HINT)]
    if status.bad:
        bad = status.bad
        rest = status.bad_count - len(bad[:_SHOWN_BAD])
        lines += [("bad", f"{one.id}: {one.reason}") for one in bad[:_SHOWN_BAD]]
        if rest:
            lines.append(("", f"and {rest:,} more mails that cannot be shown: see the log"))
    if status.shortfall is not None:
        since = status.shortfall.since
        lines.append(("shortfall", f"since {since}: {status.shortfall}"))
    lines += [
        ("last change", status.last_sync),
        ("last check", status.last_check or "never"),
        ("emails", f"{status.emails} in {status.mailboxes} mailboxes"),
        ("cache", f"{format_size(cache.bytes)} of {format_size(cache.limit)}, {cache.blobs} mails"),
        ("network", f"{http.requests} requests, {http.blobs} mails, {format_size(http.bytes)}"),
    ]
    if status.content != ContentStatus():
        lines.append(("content", _content_text(status.content)))
    return lines


def _stale_text(stale: StaleStatus) -> str:
    return (
        f"since {stale.since}: {stale.gone} of {stale.total} mails are gone from the server"
        f" ({stale.reason})"
    )


def _content_text(content: ContentStatus) -> str:
    return (
        f"{content.confirmed} confirmed with another size than the server stated,"
        f" {content.refused} downloads refused: see the log"
    )
