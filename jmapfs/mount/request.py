"""What `jmapfs mount` is asked for, once the command line and the configuration are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jmapfs.jmap import Credentials
from jmapfs.mount.options import MountOptions


@dataclass(frozen=True, slots=True)
class AccountSource:
    """An account, and how to get at it.

    `label` is what the user calls it; `location` a session URL, a host or a mail address;
    `account` the id or name of one of the session's accounts, or None for the primary one.
    """

    label: str
    location: str
    credentials: Credentials
    account: str | None = None


@dataclass(frozen=True, slots=True)
class MountRequest:
    """A mount to be made; `cache_limit` in bytes, `poll_interval` in seconds.

    With `all_accounts`, each account that the user can see is a directory at the top.
    """

    source: AccountSource
    mountpoint: Path
    cache_root: Path
    cache_limit: int
    options: MountOptions
    poll_interval: float = 60.0
    all_accounts: bool = False
