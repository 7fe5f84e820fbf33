"""Which account is meant, once the command line and the configuration are read."""

from __future__ import annotations

from dataclasses import dataclass

from jmapfs.jmap import Credentials


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
