"""What `jmapfs mount` is asked for, once the command line and the configuration are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jmapfs.account import AccountSource
from jmapfs.mount.options import MountOptions


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
