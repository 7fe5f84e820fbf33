"""The accounts that a mount shows, and when this list changed last.

With `--all`, each account is a directory in the root of the mount. The names of the accounts are
saved. If the server is unreachable at a later mount, the saved names are used. The time at which
the names changed last is saved with them: it is the time of the root.
"""

import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import trio

from jmapfs.account import (
    AccountSource,
    account_directory,
    mail_accounts,
    require_private_cache,
)
from jmapfs.daemon.request import MountRequest
from jmapfs.daemon.startup import StartupReport
from jmapfs.errors import UNDECODABLE, ConfigError, UnreachableError
from jmapfs.inodes import account_numbers
from jmapfs.names import sibling_names
from jmapfs.private_files import create_file, open_private

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AccountList:
    """The accounts of a mount by their numbers; a single account has the number 0.

    `changed_at` is when the names of their directories changed last, in seconds since 1970. It has
    no meaning for a single account.
    """

    sources: Mapping[int, AccountSource]
    changed_at: int = 0


class _SavedNames(msgspec.Struct, frozen=True):
    """The names of the accounts by account id. Earlier versions have saved only `names`."""

    names: dict[str, str]
    changed_at: int = 0


def directory_names(labels: Mapping[int, str]) -> dict[int, str]:
    """Return the names of the accounts' directories, by account number."""
    names = sibling_names({str(number): label for number, label in labels.items()})
    return {number: names[str(number)] for number in labels}


async def select_accounts(request: MountRequest, report: StartupReport) -> AccountList:
    """Return the accounts to mount.

    Raises JmapfsError if the server cannot be asked and no names were saved.
    """
    source = request.source
    if not request.all_accounts:
        return AccountList({0: source})
    directory = account_directory(request.cache_root, source)
    require_private_cache(request.cache_root, directory)
    path = directory / "accounts.json"
    saved = await trio.to_thread.run_sync(_load, path)
    try:
        names = {
            account.id: account.name
            for account in await mail_accounts(source, lambda text, _: report.waiting(text))
        }
    except UnreachableError as error:
        if saved is None or not saved.names:
            raise
        report.notice(f"{error}; showing the accounts that are known")
        names = saved.names
    if not names:
        raise ConfigError(f"{source.label}: there are no accounts with mail")
    try:
        numbers = account_numbers(names)
    except ValueError as error:
        raise ConfigError(f"{source.label}: {error}: mount them one by one") from error
    current = _SavedNames(names, _changed_at(names, saved, time.time()))
    if current != saved:
        await trio.to_thread.run_sync(_save, path, current)
    return AccountList(
        {
            numbers[account_id]: replace(source, label=name, account=account_id)
            for account_id, name in names.items()
        },
        current.changed_at,
    )


def _changed_at(names: Mapping[str, str], saved: _SavedNames | None, now: float) -> int:
    """Return the time of the root; see `index.directories` for the rounding."""
    if saved is None or not saved.changed_at:
        return int(now)
    if _directories(names) == _directories(saved.names):
        return saved.changed_at
    return max(math.ceil(now), saved.changed_at + 1)


def _directories(names: Mapping[str, str]) -> set[str]:
    numbers = account_numbers(names)
    labels = {numbers[account_id]: name for account_id, name in names.items()}
    return set(directory_names(labels).values())


def _save(path: Path, names: _SavedNames) -> None:
    try:
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(create_file(partial, 0o600), "wb") as file:
            file.write(msgspec.json.encode(names))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        _log.warning("the names of the accounts cannot be saved: %s", error)


def _load(path: Path) -> _SavedNames | None:
    try:
        with os.fdopen(open_private(path, os.O_RDONLY, create=False), "rb") as file:
            content = file.read()
    except OSError:
        return None
    try:
        return msgspec.json.decode(content, type=_SavedNames)
    except UNDECODABLE:
        pass
    try:
        return _SavedNames(msgspec.json.decode(content, type=dict[str, str]))
    except UNDECODABLE:
        return None
