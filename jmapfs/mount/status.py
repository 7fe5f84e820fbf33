"""What `jmapfs status` shows of a running mount."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import trio

from jmapfs.fuse import MailOperations
from jmapfs.mount.account import MountedAccount
from jmapfs.mount.freezing import Frozen
from jmapfs.mount.request import MountRequest
from jmapfs.tree import time_text


async def mount_status(
    request: MountRequest,
    accounts: Sequence[MountedAccount],
    operations: MailOperations,
    frozen: Frozen | None,
) -> dict[str, Any]:
    """Return the status as JSON can hold it; README.md describes its members.

    With one account, what is said of it stands at the top; with several, in `accounts`.
    """
    each = [await trio.to_thread.run_sync(_account_status, account) for account in accounts]
    status = {
        "mountpoint": os.fsencode(request.mountpoint).decode(errors="backslashreplace"),
        "pid": os.getpid(),
        "frozen": frozen and _freeze(frozen),
        "fuse": dict(sorted(operations.counts.items())),
        "pages": {"stored": accounts[0].pages.stored},
    }
    if request.all_accounts:
        return status | {"accounts": each, "online": all(one["online"] for one in each)}
    return status | each[0]


def _freeze(frozen: Frozen) -> dict[str, str | None]:
    until = None if frozen.until is None else time_text(frozen.until)
    return {"since": time_text(frozen.since), "until": until}


def _account_status(account: MountedAccount) -> dict[str, Any]:
    with account.database.reader() as reader:
        state = reader.state()
        counts = reader.counts()
    cache = account.disk.statistics()
    counters = account.content.counters
    traffic = account.traffic.total()
    keeper = account.keeper
    return {
        "account": state.account_name,
        "account_id": state.account_id,
        "server": state.server,
        "online": keeper.condition.online,
        "since": time_text(keeper.condition.since),
        "error": keeper.condition.error,
        "leads": keeper.leads,
        "push": keeper.pushed,
        "state": state.email_state,
        "last_sync": time_text(state.synced_at),
        "last_check": time_text(keeper.checked_at) if keeper.checked_at else None,
        "emails": counts.emails,
        "mailboxes": counts.mailboxes,
        "cache": {
            "bytes": cache.bytes,
            "limit": cache.limit,
            "blobs": cache.blobs,
            "hits": counters.memory_hits + counters.disk_hits,
        },
        "ahead": {"downloaded": counters.ahead, "recalled": counters.recalled},
        "http": {
            "requests": traffic.requests,
            "blobs": traffic.blobs,
            "bytes": traffic.bytes,
        },
    }
