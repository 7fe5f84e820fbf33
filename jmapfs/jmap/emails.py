"""Reading emails: page by page in order of receipt, and by id. Each id is accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jmapfs.errors import ProtocolError
from jmapfs.jmap.account import AccountCalls
from jmapfs.jmap.api import DEFAULT_DEADLINE
from jmapfs.jmap.mail import EMAIL_PROPERTIES, Email, EmailGetAnswer, QueryAnswer
from jmapfs.jmap.wording import printable

_BY_RECEIPT = [{"property": "receivedAt", "isAscending": True}]


@dataclass(frozen=True, slots=True)
class EmailPage:
    """A page of the listing: `ids` in the order of receipt, and the emails in the same order.

    `not_found` are those of `ids` that were destroyed in between. `state` is the Email state of the
    get; `total` is there on the first page only, if the server counts. An empty page is the end.
    """

    ids: tuple[str, ...]
    emails: tuple[Email, ...]
    not_found: tuple[str, ...]
    query_state: str
    state: str
    total: int | None


class EmailCalls(AccountCalls):
    """Email/query and Email/get (RFC 8621 §4)."""

    async def email_state(self, *, deadline: float = DEFAULT_DEADLINE) -> str:
        """Return the state of Email now, without any email. Raises what Api.request raises."""
        answer = await self._get([], deadline)
        return answer.state

    async def query_page(
        self, anchor: str | None, limit: int, *, deadline: float = DEFAULT_DEADLINE
    ) -> EmailPage:
        """Return the next page after the email `anchor`, or the first: at most `limit` emails.

        One HTTP request as a rule; fewer emails are asked for where the server finds `limit` too
        large, and some servers return fewer unasked. `deadline` is in seconds, for each request.

        Raises MethodError, of kind `anchorNotFound` where the anchor has vanished (list again from
        the start), and ProtocolError for a queried email that is neither returned nor not found.
        """

        async def ask(size: int) -> EmailPage:
            return await self._page(anchor, size, deadline)

        return await self._shrinking(limit, ask)

    async def emails(
        self, ids: Iterable[str], *, deadline: float = DEFAULT_DEADLINE
    ) -> tuple[list[Email], list[str]]:
        """Return the emails with these ids, in this order, and the ids that are not found.

        As many requests in turn as the server's limits need; `deadline` is in seconds, for each.
        Raises ProtocolError for an id that is neither returned nor not found, asked twice.
        """
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Email] = {}
        gone: set[str] = set()
        missing: list[str] = []
        # What an answer leaves out is asked for once more: the server may have cut it short.
        for again in (False, True):
            pending = missing if again else wanted
            missing = []
            while pending:
                asked = await self._chunk(pending, deadline, found, gone)
                missing += [id_ for id_ in asked if id_ not in found and id_ not in gone]
                pending = pending[len(asked) :]
        if missing:
            raise ProtocolError(
                f"the server answers Email/get without {len(missing)} of {len(wanted)} emails "
                f"that were asked for, the first being {printable(missing[0], 80)}"
            )
        return [found[id_] for id_ in wanted if id_ in found], [i for i in wanted if i in gone]

    async def _chunk(
        self, pending: Sequence[str], deadline: float, found: dict[str, Email], gone: set[str]
    ) -> Sequence[str]:
        """Get the first of `pending`, as many as the server takes; return which those were."""

        async def ask(size: int) -> tuple[Sequence[str], EmailGetAnswer]:
            chunk = pending[:size]
            return chunk, await self._get(chunk, deadline)

        asked, answer = await self._shrinking(len(pending), ask)
        _sort_out(asked, answer, found, gone)
        return asked

    async def _get(self, ids: Sequence[str], deadline: float) -> EmailGetAnswer:
        arguments = {"ids": ids, "properties": EMAIL_PROPERTIES}
        return await self._ask("Email/get", arguments, EmailGetAnswer, deadline=deadline)

    async def _page(self, anchor: str | None, limit: int, deadline: float) -> EmailPage:
        query = self._call("Email/query", _query_arguments(anchor, limit), "query")
        get = self._call(
            "Email/get",
            {
                "#ids": {"resultOf": "query", "name": "Email/query", "path": "/ids"},
                "properties": EMAIL_PROPERTIES,
            },
            "get",
        )
        found: dict[str, Email] = {}
        gone: set[str] = set()
        if self.api.session.limits.max_calls_in_request < 2:
            [queried] = await self.api.request([query], deadline=deadline)
            listing = self._answer(queried, QueryAnswer)
            ids = list(dict.fromkeys(listing.ids))
            # The state before the emails: what changes between the two is then told again.
            state = await self.email_state(deadline=deadline)
        else:
            queried, got = await self.api.request([query, get], deadline=deadline)
            listing = self._answer(queried, QueryAnswer)
            answer = self._answer(got, EmailGetAnswer)
            ids = list(dict.fromkeys(listing.ids))
            state = answer.state
            _sort_out(ids, answer, found, gone)
        if anchor is not None and anchor in ids:
            raise ProtocolError("the server answers Email/query with the anchor it was to follow")
        rest, rest_gone = await self.emails(
            (id_ for id_ in ids if id_ not in found and id_ not in gone), deadline=deadline
        )
        found.update((email.id, email) for email in rest)
        gone.update(rest_gone)
        return EmailPage(
            ids=tuple(ids),
            emails=tuple(found[id_] for id_ in ids if id_ in found),
            not_found=tuple(id_ for id_ in ids if id_ in gone),
            query_state=listing.query_state or "",
            state=state,
            total=listing.total if anchor is None else None,
        )


def _query_arguments(anchor: str | None, limit: int) -> dict[str, object]:
    arguments: dict[str, object] = {"sort": _BY_RECEIPT, "limit": limit}
    if anchor is None:
        # Counting costs a server as much as the listing: once is enough.
        return {**arguments, "position": 0, "calculateTotal": True}
    return {**arguments, "anchor": anchor, "anchorOffset": 1}


def _sort_out(
    asked: Iterable[str], answer: EmailGetAnswer, found: dict[str, Email], gone: set[str]
) -> None:
    """Add what was asked for to `found` or `gone`; what nobody asked for is left out."""
    wanted = set(asked)
    for document in answer.items:
        if document.id in wanted:
            found[document.id] = document.email()
    gone.update(id_ for id_ in answer.not_found or () if id_ in wanted and id_ not in found)
