"""Whether a series of responses, of which the server says that it goes on, comes nearer to its end.

A server may return to an earlier state, say that there are more changes for ever, or invent ids.
Each series therefore has a bound that no answer of the server can move.
"""

from collections.abc import Collection, Iterable
from typing import Final

from jmapfs.errors import ProtocolError

_MAX_IDLE_RESPONSES: Final = 10
_MAX_FRUITLESS_RESPONSES: Final = 30
# More than this number of idle responses can name, and about 15 MB.
_MAX_REMEMBERED_IDS: Final = 1 << 17
# A server may return few ids at a time, but not for ever.
_FREE_PAGES: Final = 1000
_LEAST_IDS_OF_PAGE: Final = 50
_MAX_IDS: Final = 2_000_000


class PageCount:
    """Counts the pages of a list, and the ids on them; `what` names the list in the error.

    After 1,000 pages, there must be 50 ids on a page on the average. No list has more than two
    million ids.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pages = 0

    def add(self, ids: int) -> None:
        """Record one more page; `ids` is how many ids all pages have. Raises ProtocolError."""
        self._pages += 1
        if ids > _MAX_IDS:
            raise ProtocolError(f"{self._what} has no end: it has more than {_MAX_IDS:,} ids")
        if self._pages > _FREE_PAGES and ids < self._pages * _LEAST_IDS_OF_PAGE:
            raise ProtocolError(
                f"{self._what} has no end: {self._pages:,} pages have only {ids:,} ids"
            )


class ChainProgress:
    """Tells whether a chain of responses with `hasMoreChanges` comes nearer to its end."""

    def __init__(self, since_state: str) -> None:
        self._states = {since_state}
        self._ids: set[str] = set()
        self._idle = 0
        self._fruitless = 0
        self._named = 0
        self._pages = PageCount("the chain of changes")

    def add(self, new_state: str, ids: Iterable[str], found: Collection[object] | None) -> bool:
        """Add a response that names `ids`. Return False if the chain would not end.

        `found` is what the response has brought, None if nobody knows. The chain does not end if
        the state was there before, if 10 responses in a row name no id that was not named before,
        or if 30 in a row bring nothing: a server may invent ids. The same is true if it is longer
        than any list (PageCount).
        """
        is_new = new_state not in self._states
        self._states.add(new_state)
        names = set(ids)
        self._named += len(names)
        self._idle = self._idle + 1 if names <= self._ids else 0
        self._fruitless = 0 if found is None or found else self._fruitless + 1
        if len(self._ids) < _MAX_REMEMBERED_IDS:
            self._ids |= names
        try:
            self._pages.add(self._named)
        except ProtocolError:
            return False
        return (
            is_new
            and self._idle < _MAX_IDLE_RESPONSES
            and self._fruitless < _MAX_FRUITLESS_RESPONSES
        )
