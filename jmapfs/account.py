"""Which account is meant, which accounts a user has, and where the data of an account is kept."""

from dataclasses import dataclass
from pathlib import Path

from jmapfs.jmap.client import connect
from jmapfs.jmap.credentials import BasicCredentials, Credentials
from jmapfs.jmap.session import SessionAccount
from jmapfs.names import key, safe_text


@dataclass(frozen=True, slots=True)
class AccountSource:
    """An account and how to connect to it.

    label: the name that the user has given to the account.
    location: a session URL, a host or a mail address.
    account: the id or name of one of the session's accounts, None for the primary one.
    """

    label: str
    location: str
    credentials: Credentials
    account: str | None = None


def account_directory(cache_root: Path, source: AccountSource) -> Path:
    """Return the directory of one account's index and blobs.

    The directory's name depends only on the command line and configuration, not on the server.
    """
    credentials = source.credentials
    user = credentials.username if isinstance(credentials, BasicCredentials) else ""
    identity = "\0".join((source.location, user, source.account or ""))
    name = safe_text(source.location.partition("://")[2] or source.location, limit=40)
    return cache_root / f"{name}_{key(identity)}"


async def mail_accounts(source: AccountSource) -> list[SessionAccount]:
    """Return the accounts with mail that the user can see, the primary one first.

    Raises JmapfsError if the server cannot be asked.
    """
    async with connect(source.location, source.credentials) as client:
        return client.session.mail_accounts()
