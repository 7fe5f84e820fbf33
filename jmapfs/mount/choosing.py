"""Which accounts a mount shows: the one that was asked for, or all that the user can see."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import trio

from jmapfs.account import AccountSource, account_directory, mail_accounts
from jmapfs.errors import UNDECODABLE, ConfigError, UnreachableError
from jmapfs.mount.report import Report
from jmapfs.mount.request import MountRequest
from jmapfs.names import account_slots

_log = logging.getLogger(__name__)


async def chosen_accounts(request: MountRequest, report: Report) -> dict[int, AccountSource]:
    """Return the accounts to be shown by their numbers; a single one has the number 0.

    Which ones there are is remembered, for the day when the server cannot be asked.

    Raises:
        JmapfsError: the server cannot be asked, and nothing is remembered.
    """
    source = request.source
    if not request.all_accounts:
        return {0: source}
    memory = account_directory(request.cache_root, source) / "accounts.json"
    try:
        names = {account.id: account.name for account in await mail_accounts(source)}
    except UnreachableError as error:
        names = await trio.to_thread.run_sync(_recall, memory)
        if not names:
            raise
        report.notice(f"{error}; showing the accounts that are known")
    else:
        await trio.to_thread.run_sync(_remember, memory, names)
    if not names:
        raise ConfigError(f"{source.label}: there are no accounts with mail")
    try:
        slots = account_slots(names)
    except ValueError as error:
        raise ConfigError(f"{source.label}: {error}: mount them one by one") from error
    return {
        slots[account_id]: replace(source, label=name, account=account_id)
        for account_id, name in names.items()
    }


def _remember(path: Path, names: dict[str, str]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(msgspec.json.encode(names))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        _log.warning("the accounts cannot be remembered: %s", error)


def _recall(path: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, *UNDECODABLE):
        return {}
