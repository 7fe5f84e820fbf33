"""Lists the ids of all emails of an account.

The pages are requested by position, and without a sort order: a server may sort by a search index
that lags behind, and emails would then change their place between two pages. Each page begins with
the last id of the page before. If it does not, emails were added or removed before that position,
and the list begins anew. What still changes during a listing is among the changes of the emails.
"""

import logging
from dataclasses import dataclass
from typing import Final

from jmapfs.errors import ProtocolError
from jmapfs.jmap.client import Client
from jmapfs.jmap.series import PageCount

_log = logging.getLogger(__name__)

_MAX_ATTEMPTS: Final = 5
_LIST: Final = "the server's list of emails"


@dataclass(frozen=True, slots=True)
class IdListing:
    """The ids of all emails, and how many there are according to the server (or None).

    is_whole: whether all pages fit together. Otherwise ids may be missing, and some are of emails
        that were destroyed during the listing.
    """

    ids: dict[str, None]
    total: int | None
    is_whole: bool = True

    @property
    def agrees(self) -> bool:
        """Whether this is certainly the whole list."""
        return self.is_whole and self.total == len(self.ids)


async def list_ids(client: Client, *, trust_total: bool = True) -> IdListing:
    """List the ids of all emails.

    With `trust_total`, the list ends when it has as many ids as the server counts. Raises
    ProtocolError if the server returns the same page again and again, or pages without end. Other
    errors are those of the client.
    """
    seen: dict[str, None] = {}
    for _ in range(_MAX_ATTEMPTS):
        listing = await _attempt(client, trust_total=trust_total)
        if listing.is_whole:
            return listing
        seen |= listing.ids
        _log.info("the list of emails changes while it is read: reading it again")
    return IdListing(seen | await _list_overlapping(client), None, is_whole=False)


async def _attempt(client: Client, *, trust_total: bool) -> IdListing:
    page = await client.query_ids(0, count=True)
    total = page.total
    ids = dict.fromkeys(page.ids)
    position = len(page.ids)
    pages = PageCount(_LIST)
    if total == len(ids) and trust_total:
        return IdListing(ids, total)
    while page.ids:
        pages.add(len(ids))
        last = next(reversed(ids))
        page = await client.query_ids(position - 1)
        if page.ids[:1] != (last,):
            return IdListing(ids, total, is_whole=False)
        new = page.ids[1:]
        if not new and (total is None or len(ids) < total or not trust_total):
            # Either this is the end, or the server returns only one id at a time.
            page = await client.query_ids(position)
            new = page.ids
            if new and new[-1] == last and ids.keys() >= set(new):
                # After the end, some servers return the last ids again.
                break
        if not new:
            break
        if not ids.keys().isdisjoint(new):
            return IdListing(ids, total, is_whole=False)
        ids.update(dict.fromkeys(new))
        position += len(new)
    return IdListing(ids, total)


async def _list_overlapping(client: Client) -> dict[str, None]:
    """List ids in pages that overlap by half, so that a few removed emails hide no others."""
    first = page = (await client.query_ids(0)).ids
    ids: dict[str, None] = {}
    position = 0
    pages = PageCount(_LIST)
    while page:
        known = len(ids)
        ids.update(dict.fromkeys(page))
        pages.add(len(ids))
        if len(ids) == known and position > len(ids) + len(page):
            # After the end, some servers return the last page again. Others ignore the position.
            if page == first:
                raise ProtocolError("the server answers Email/query with the same page again")
            break
        position += max(1, len(page) // 2)
        page = (await client.query_ids(position)).ids
    return ids
