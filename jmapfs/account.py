"""Which account is meant, which accounts a user has, and where the data of an account is kept."""

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from jmapfs.errors import StorageError, storage_errors
from jmapfs.jmap.client import Client, connect, open_session
from jmapfs.jmap.http import CONCURRENCY
from jmapfs.jmap.identity import normalize_location
from jmapfs.jmap.login import Login
from jmapfs.jmap.origins import WELL_KNOWN
from jmapfs.jmap.session import SessionAccount
from jmapfs.names import key, safe_text
from jmapfs.private_files import private_directory, require_private

COMMAND_WAIT = 90.0
"""Seconds that a command waits for a request, at most, when the server asks to wait.

Together with the time for the request itself, this is LONGEST_STALL.
"""


@dataclass(frozen=True, slots=True)
class AccountSource:
    """An account and how to connect to it.

    label: the name that the user has given to the account.
    location: a session URL, a host or a mail address.
    login: the credentials; shared by all accounts of the user.
    account: the id or name of one of the session's accounts, None for the primary one.
    rewrite_origin: whether the URLs of the session keep the origin that `location` leads to.
    ca_file: more certificate authorities.
    """

    label: str
    location: str
    login: Login
    account: str | None = None
    rewrite_origin: bool = False
    ca_file: Path | None = None

    def connect(
        self,
        *,
        concurrency: int = CONCURRENCY,
        longest_wait: float = COMMAND_WAIT,
        on_wait: Callable[[str, float], None] | None = None,
    ) -> AbstractAsyncContextManager[Client]:
        """Return a context that connects to the account, with the options of `open_session`."""
        return connect(
            self.location,
            self.login,
            account=self.account,
            rewrite_origin=self.rewrite_origin,
            ca_file=self.ca_file,
            concurrency=concurrency,
            longest_wait=longest_wait,
            on_wait=on_wait,
        )


def account_directory(cache_root: Path, source: AccountSource) -> Path:
    """Return the directory of one account's index and blobs.

    The directory's name depends only on the command line and configuration, not on the server. All
    spellings of a URL or a host have one directory. Earlier versions made one for each spelling;
    such a directory is still used.
    """
    earlier = cache_root / _directory_name(source.location, source)
    if earlier.is_dir():
        return earlier
    location = normalize_location(source.location).removesuffix(WELL_KNOWN)
    return cache_root / _directory_name(location, source)


def require_private_cache(cache_root: Path, directory: Path) -> None:
    """Create the directory of an account, or check that nobody else can change what is in it.

    The user may have named `cache_root`. The default is below a directory of the system's choice,
    so it is checked itself. Raises StorageError.
    """
    default = platformdirs.user_cache_path("jmapfs")
    named = default.parent if cache_root == default else cache_root
    if cache_root == default and cache_root.is_symlink():
        raise StorageError(
            f"{cache_root}: it is a symbolic link: replace it by a directory, or use --cache-dir"
            f" {os.path.realpath(cache_root)}"
        )
    with storage_errors(directory):
        private_directory(directory, named=named)
    blobs = directory / "blobs"
    for path in (blobs, blobs / "large"):
        if os.path.lexists(path):
            with storage_errors(path):
                require_private(path)


def _directory_name(location: str, source: AccountSource) -> str:
    identity = "\0".join((location, source.login.username, source.account or ""))
    name = safe_text(location.partition("://")[2] or location, limit=40)
    return f"{name}_{key(identity)}"


async def mail_accounts(
    source: AccountSource, on_wait: Callable[[str, float], None] | None = None
) -> list[SessionAccount]:
    """Return the accounts with mail that the user can see, the primary one first.

    `on_wait` gets a line for the user, and seconds, if the server asks to wait. Raises JmapfsError
    if the server cannot be asked.
    """
    async with open_session(
        source.location,
        source.login,
        rewrite_origin=source.rewrite_origin,
        ca_file=source.ca_file,
        longest_wait=COMMAND_WAIT,
        on_wait=on_wait,
    ) as (session, _):
        return session.mail_accounts()
