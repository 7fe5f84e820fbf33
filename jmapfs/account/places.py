"""Where the index and the blobs of an account are kept."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from jmapfs.account.source import AccountSource
from jmapfs.jmap import BasicCredentials
from jmapfs.names import key, safe_text


def default_cache_root() -> Path:
    """Return where caches go: `$XDG_CACHE_HOME/jmapfs`."""
    return platformdirs.user_cache_path("jmapfs")


def account_directory(cache_root: Path, source: AccountSource) -> Path:
    """Return the directory of one account's index and blobs.

    It is named after what the user asked for, and so is found without asking the server.
    """
    credentials = source.credentials
    user = credentials.username if isinstance(credentials, BasicCredentials) else ""
    identity = "\0".join((source.location, user, source.account or ""))
    name = safe_text(source.location.partition("://")[2] or source.location, limit=40)
    return cache_root / f"{name}_{key(identity)}"
