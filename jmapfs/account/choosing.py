"""Which accounts a user can see: those with mail in them."""

from __future__ import annotations

from typing import Final

from jmapfs.account.source import AccountSource
from jmapfs.jmap import Account, Session, connect

_MAIL: Final = "urn:ietf:params:jmap:mail"


async def mail_accounts(source: AccountSource) -> list[Account]:
    """Return the accounts with mail that the user can see, the primary one first.

    Raises:
        JmapfsError: the server cannot be asked.
    """
    async with connect(source.location, source.credentials) as client:
        return mail_accounts_of(client.session)


def mail_accounts_of(session: Session) -> list[Account]:
    """Return the accounts with mail in a session, the primary one first."""
    primary = session.primary_accounts.get(_MAIL)
    # `accountCapabilities` can be null; only an account that has some, and not this, has no mail.
    having = [
        account
        for account in session.accounts.values()
        if _MAIL in account.capabilities or not account.capabilities
    ]
    return sorted(having, key=lambda account: (account.id != primary, account.name, account.id))
