"""Which account is meant: what the user named, the user name, and the account id.

The host of the API does not belong to the identity of an account, because providers move it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import httpx

from jmapfs.errors import printable
from jmapfs.jmap.origins import WELL_KNOWN, origin_of

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MAX_ORIGINS = 8


@dataclass(frozen=True, slots=True)
class AccountIdentity:
    """An account, as a session, an index or a snapshot names it.

    location: what the user named, from `normalize_location`; empty if it is not known.
    origins: where the API and the session of the account are, or were, the newest first.
    username: the user name that the session states; empty if it is not known.
    """

    location: str
    origins: tuple[str, ...]
    username: str
    account_id: str

    def __str__(self) -> str:
        """Return the account as text."""
        user = f" of {printable(self.username, 80)}" if self.username else ""
        where = self.location or next(iter(self.origins), "an unknown server")
        return f"account {printable(self.account_id, 80)}{user} at {printable(where, 200)}"

    def is_same_account(self, other: AccountIdentity) -> bool:
        """Return whether both are the same account of the same user.

        The location must be the same. If it is not known, or if the user names the server in
        another way now, one of the origins must be the same.
        """
        users = {one.username.casefold() for one in (self, other) if one.username}
        if self.account_id != other.account_id or len(users) > 1:
            return False
        if self.location and self.location == other.location:
            return True
        return not set(self.origins).isdisjoint(other.origins)


def normalize_location(location: str) -> str:
    """Return one form for all ways to write a location: a session URL, a host or a mail address."""
    location = location.strip()
    is_url = _SCHEME.match(location) is not None
    if not is_url and "@" in location:
        return location.casefold()
    try:
        url = httpx.URL(location if is_url else f"https://{location}")
        path = url.raw_path.decode("ascii")
        return origin_of(str(url)) + (WELL_KNOWN if path == "/" else path)
    except (httpx.InvalidURL, ValueError):
        return location


def merge_origins(*groups: Iterable[str]) -> tuple[str, ...]:
    """Return the origins of some URLs, the first ones if there are many. Ignore unusable URLs."""
    origins: list[str] = []
    for url in (url for group in groups for url in group):
        # A damaged description of a snapshot may contain anything.
        with suppress(httpx.InvalidURL, ValueError):
            if httpx.URL(url).host:
                origins.append(origin_of(url))
    return tuple(dict.fromkeys(origins))[:_MAX_ORIGINS]
