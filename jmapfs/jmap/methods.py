"""What changed since a state: Email/changes and Mailbox/changes (RFC 8620 §5.2).

What all calls about one account share: whose it is, and what to do about too large requests.

Reading emails: page by page in order of receipt, and by id. Each id is accounted for.

Reading all mailboxes of an account, at once or, where the server insists, in parts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jmapfs.errors import JmapfsError, MethodError, ProtocolError, RequestError
from jmapfs.jmap.api import DEFAULT_DEADLINE, Api, MethodCall, MethodResponse
from jmapfs.jmap.http_errors import printable
from jmapfs.jmap.types import (
    EMAIL_PROPERTIES,
    AnswerType,
    ChangesAnswer,
    Email,
    EmailGetAnswer,
    Mailbox,
    MailboxGetAnswer,
    QueryAnswer,
)

T = TypeVar("T")


class AccountMethods:
    """Calls bound to one account id; several of them can share an Api."""

    def __init__(self, api: Api, account_id: str) -> None:
        self.api = api
        self.account_id = account_id

    def _call(self, name: str, arguments: Mapping[str, object], call_id: str = "0") -> MethodCall:
        return MethodCall(name, {"accountId": self.account_id, **arguments}, call_id)

    def _answer(self, response: MethodResponse, type_: type[AnswerType]) -> AnswerType:
        answer = response.decode(type_)
        if answer.account_id is not None and answer.account_id != self.account_id:
            raise ProtocolError(f"the server answers {response.name} for another account")
        return answer

    async def _ask(
        self,
        name: str,
        arguments: Mapping[str, object],
        type_: type[AnswerType],
        *,
        deadline: float,
    ) -> AnswerType:
        [response] = await self.api.request([self._call(name, arguments)], deadline=deadline)
        return self._answer(response, type_)

    async def _shrinking(self, size: int, ask: Callable[[int], Awaitable[T]]) -> T:
        """Ask with `size` objects at once, or fewer while the server finds that too many."""
        size = max(1, min(size, self.api.max_objects_in_get))
        while True:
            try:
                return await ask(size)
            except (MethodError, RequestError) as error:
                if size == 1 or not is_too_large(error):
                    raise
            size //= 2
            self.api.learn_max_objects(size)


def is_too_large(error: JmapfsError) -> bool:
    """Tell whether a request was refused for its size, so that half of it may be accepted."""
    if isinstance(error, MethodError):
        return error.kind == "requestTooLarge"
    if isinstance(error, RequestError):
        return error.status == 413 or error.limit in {"maxSizeRequest", "maxObjectsInGet"}
    return False


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


class EmailMethods(AccountMethods):
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


# How often a listing in parts is begun again because the mailboxes changed meanwhile.
_LISTINGS = 4


class MailboxMethods(AccountMethods):
    """Mailbox/get and Mailbox/query (RFC 8621 §2)."""

    async def mailboxes(self, *, deadline: float = DEFAULT_DEADLINE) -> tuple[list[Mailbox], str]:
        """Return every mailbox of the account and the Mailbox state they are of.

        In parts where the server finds all of them too much; the state is then that from before
        the first part. `deadline` is in seconds, for each request. Raises what Api.request
        raises, and ProtocolError when the server leaves mailboxes out.
        """
        try:
            answer = await self._get_mailboxes(None, deadline)
        except (MethodError, RequestError) as error:
            if not is_too_large(error):
                raise
            return await self._in_parts(deadline)
        unique = {document.id: document.mailbox() for document in answer.items}
        return list(unique.values()), answer.state

    async def _in_parts(self, deadline: float) -> tuple[list[Mailbox], str]:
        before = await self._get_mailboxes([], deadline)
        ids = await self._mailbox_ids(deadline)
        found: dict[str, Mailbox] = {}
        while ids:
            asked, answer = await self._part(ids, deadline)
            found.update((document.id, document.mailbox()) for document in answer.items)
            gone = set(answer.not_found or ())
            left_out = [id_ for id_ in asked if id_ not in found and id_ not in gone]
            if left_out:
                raise ProtocolError(
                    f"the server answers Mailbox/get without {len(left_out)} of {len(asked)} "
                    f"mailboxes, the first being {printable(left_out[0], 80)}"
                )
            ids = ids[len(asked) :]
        return list(found.values()), before.state

    async def _part(
        self, ids: Sequence[str], deadline: float
    ) -> tuple[Sequence[str], MailboxGetAnswer]:
        async def ask(size: int) -> tuple[Sequence[str], MailboxGetAnswer]:
            chunk = ids[:size]
            return chunk, await self._get_mailboxes(chunk, deadline)

        return await self._shrinking(len(ids), ask)

    async def _mailbox_ids(self, deadline: float) -> Sequence[str]:
        """Return the ids of all mailboxes, from one and the same state of the query."""
        for _ in range(_LISTINGS):
            ids: dict[str, None] = {}
            states: set[str | None] = set()
            while True:
                page = await self._mailbox_query(len(ids), deadline)
                states.add(page.query_state)
                fresh = [id_ for id_ in page.ids if id_ not in ids]
                ids.update(dict.fromkeys(fresh))
                if not page.ids:
                    break
                if not fresh:
                    # The same again: positions have moved, or mean nothing to this server.
                    states.add("")
                    break
            # A mailbox that moved from one page to the next would be missed.
            if len(states) == 1:
                return list(ids)
        raise ProtocolError("the server's list of mailboxes changes each time it is read")

    async def _mailbox_query(self, position: int, deadline: float) -> QueryAnswer:
        arguments = {"position": position, "limit": self.api.max_objects_in_get}
        return await self._ask("Mailbox/query", arguments, QueryAnswer, deadline=deadline)

    async def _get_mailboxes(self, ids: Sequence[str] | None, deadline: float) -> MailboxGetAnswer:
        arguments = {"ids": ids}
        return await self._ask("Mailbox/get", arguments, MailboxGetAnswer, deadline=deadline)


@dataclass(frozen=True, slots=True)
class Changes:
    """Ids that were created, updated or destroyed between two states.

    `new_state` is the one to go on from. With `has_more` there is more to ask for from there; if
    it equals the state that was asked about, there is no progress and the listing must be read
    again. Servers may name an id in several of the three.
    """

    old_state: str
    new_state: str
    has_more: bool
    created: tuple[str, ...]
    updated: tuple[str, ...]
    destroyed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MailboxChanges(Changes):
    """Changes of mailboxes; `updated_properties` are the only ones that changed, None is any."""

    updated_properties: frozenset[str] | None


class ChangeMethods(AccountMethods):
    """Email/changes (RFC 8621 §4.3) and Mailbox/changes (§2.2)."""

    async def email_changes(
        self,
        since_state: str,
        max_changes: int | None = None,
        *,
        deadline: float = DEFAULT_DEADLINE,
    ) -> Changes:
        """Return the changes of emails since a state, at most `max_changes` of them.

        Raises MethodError, of kind `cannotCalculateChanges` (or, for an unknown state,
        `invalidArguments` or `serverFail`) where the listing has to be read again.
        """
        answer = await self._changes("Email/changes", since_state, max_changes, deadline)
        return Changes(
            old_state=answer.old_state or since_state,
            new_state=answer.new_state,
            has_more=answer.has_more_changes or False,
            created=tuple(answer.created or ()),
            updated=tuple(answer.updated or ()),
            destroyed=tuple(answer.destroyed or ()),
        )

    async def mailbox_changes(
        self,
        since_state: str,
        max_changes: int | None = None,
        *,
        deadline: float = DEFAULT_DEADLINE,
    ) -> MailboxChanges:
        """Return the changes of mailboxes since a state; as `email_changes`."""
        answer = await self._changes("Mailbox/changes", since_state, max_changes, deadline)
        properties = answer.updated_properties
        return MailboxChanges(
            old_state=answer.old_state or since_state,
            new_state=answer.new_state,
            has_more=answer.has_more_changes or False,
            created=tuple(answer.created or ()),
            updated=tuple(answer.updated or ()),
            destroyed=tuple(answer.destroyed or ()),
            updated_properties=None if properties is None else frozenset(properties),
        )

    async def _changes(
        self, name: str, since_state: str, max_changes: int | None, deadline: float
    ) -> ChangesAnswer:
        arguments: dict[str, object] = {"sinceState": since_state}
        if max_changes is not None:
            # 0 is not allowed, and some servers take it for "no limit", others for an error.
            arguments["maxChanges"] = max(1, max_changes)
        return await self._ask(name, arguments, ChangesAnswer, deadline=deadline)
