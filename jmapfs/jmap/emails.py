"""The emails of an account: Email/get and Email/query (RFC 8621 §4).

For every requested id, the email is returned, or the id is reported as not found, or the email is
bad.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from jmapfs.errors import MethodError, ProtocolError, RequestError
from jmapfs.jmap.answers import AnswerTooLargeError, run_decoder
from jmapfs.jmap.lenient import UnusableError, decode_leniently
from jmapfs.jmap.mailboxes import Got, MailboxMethods
from jmapfs.jmap.method_calls import is_too_large
from jmapfs.jmap.types import (
    EMAIL_PROPERTIES,
    IMMUTABLE_PROPERTIES,
    BadEmail,
    Email,
    EmailIdentity,
    GetResponse,
    ImmutableEmail,
    Mailbox,
    QueryResponse,
    unix_seconds,
)

E = TypeVar("E", Email, ImmutableEmail)

# How many ids to request at once; if the server rejects a limit, the next. None is its own limit.
_ID_LIMITS = (10_000, 1_000, 100, None)
# To find one email that is too large takes about ten requests. If there are more, the server is
# the reason.
_MOST_TOO_LARGE = 20
_NOT_RETURNED = "the server neither returns it nor reports it as not found"


class EmailsFound(NamedTuple):
    """The results for requested ids: emails in the requested order, and the ids without an email.

    The account does not have the ids that are `not_found`. It has the `bad` emails, but they cannot
    be shown.
    """

    emails: list[Email]
    not_found: list[str]
    bad: list[BadEmail]


@dataclass(frozen=True, slots=True)
class IdPage:
    """A page of the list of the ids of all emails; `total` is None if the server counts none."""

    ids: tuple[str, ...]
    total: int | None


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """How many emails the account and each mailbox have; None if the server does not count them.

    The counts are those of `email_state`, if they did not change since the state before.
    """

    email_state: str
    total: int | None
    mailboxes: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class EmailValues:
    """The values that never change while an Email id means the same (RFC 8621 §4.1.1).

    `size` is in bytes. `received_at` is in whole seconds since 1970, in UTC. `message_ids` are
    those in the header, without angle brackets; none if the server states none.
    """

    blob_id: str
    size: int
    received_at: int
    message_ids: tuple[str, ...] = ()


class FoundEmails(Generic[E]):
    """The results of one or more Email/get: emails and bad emails by id, and ids not found."""

    def __init__(self) -> None:
        self.emails: dict[str, E] = {}
        self.not_found: set[str] = set()
        self.bad: dict[str, BadEmail] = {}

    async def add(self, requested: Iterable[str], response: Got[E]) -> None:
        """Add the results for the `requested` ids, and ignore all others."""
        # What is known of bad emails is decoded here.
        await run_decoder(partial(self._add, set(requested), response), response.unusable_size)

    def _add(self, wanted: set[str], response: Got[E]) -> None:
        self.emails.update((email.id, email) for email in response.items if email.id in wanted)
        self.bad.update((bad.id, bad) for bad in _bad_emails(response.unusable) if bad.id in wanted)
        self.not_found.update(
            id_
            for id_ in response.not_found
            if id_ in wanted and id_ not in self.emails and id_ not in self.bad
        )

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Return the ids without a result."""
        return [
            id_
            for id_ in ids
            if id_ not in self.emails and id_ not in self.not_found and id_ not in self.bad
        ]

    def in_order(self, ids: Iterable[str]) -> tuple[E, ...]:
        """Return the emails in the order of the ids."""
        return tuple(self.emails[id_] for id_ in ids if id_ in self.emails)

    def bad_in_order(self, ids: Iterable[str]) -> tuple[BadEmail, ...]:
        """Return the bad emails in the order of the ids."""
        return tuple(self.bad[id_] for id_ in ids if id_ in self.bad and id_ not in self.emails)


class EmailMethods(MailboxMethods):
    """Email/get and Email/query."""

    _has_message_ids = True
    _id_limits: Sequence[int | None] = _ID_LIMITS

    async def email_state(self) -> str:
        """Return the current Email state. No emails are requested."""
        return (await self._get_emails([])).state

    async def query_ids(self, position: int, *, count: bool = False) -> IdPage:
        """Return ids of emails, from a position of the list of all emails, in any order.

        A sorted list is not complete on every server: some sort by a search index that lags behind.
        Servers may return fewer ids than there are. With `count`, the total is requested.
        """
        arguments: dict[str, object] = {"position": position}
        if count:
            arguments["calculateTotal"] = True
        while True:
            limit = self._id_limits[0]
            bounded = arguments if limit is None else arguments | {"limit": limit}
            try:
                page = await self._query("Email/query", bounded)
            except (MethodError, RequestError) as error:
                is_refused = isinstance(error, MethodError) and error.kind == "invalidArguments"
                if len(self._id_limits) == 1 or not (is_refused or is_too_large(error)):
                    raise
                self._id_limits = self._id_limits[1:]
            else:
                return IdPage(tuple(page.ids), page.total)

    async def counts(self) -> ServerCounts:
        """Return the numbers of emails. This takes one HTTP request if possible.

        Raises MethodError if the server refuses to count, and the same errors as `mailboxes`.
        """
        query: dict[str, object] = {"limit": 1, "calculateTotal": True}
        mailboxes = {"ids": None, "properties": ["id", "totalEmails"]}
        while True:
            responses = await self.request(
                [
                    self._call("Email/query", query, "query"),
                    self._call("Mailbox/get", mailboxes, "mailboxes"),
                    self._call("Email/get", {"ids": [], "properties": ["id"]}, "state"),
                ],
                raise_errors=False,
            )
            # Some servers refuse such a small limit. Without it, all ids are returned.
            if responses[0].error is None or query.pop("limit", None) is None:
                break
        queried, counted, checked = responses
        state = (await self._decode_get(checked, GetResponse[Email], Email, ())).state
        total = None
        if queried.error is None:
            total = (await self._decode(queried, QueryResponse, lenient=True)).total
        boxes: Sequence[Mailbox] = ()
        if counted.error is None:
            boxes = (await self._decode_get(counted, GetResponse[Mailbox], Mailbox, None)).items
        elif is_too_large(counted.error):
            boxes, _ = await self.mailboxes()
            state = await self.email_state()
        elif total is None:
            raise queried.error or counted.error
        return ServerCounts(state, total, {box.id: box.total_emails for box in boxes})

    async def emails(self, ids: Iterable[str]) -> EmailsFound:
        """Return the emails with these ids, in this order, and the ids without a usable email.

        If the server limits the number of emails in a request, several requests are sent in turn.
        An email is also bad if two responses neither contain it nor report it as not found.
        """
        wanted = list(dict.fromkeys(ids))
        found = await self._find(wanted, self._get_emails)
        return EmailsFound(
            list(found.in_order(wanted)),
            [id_ for id_ in wanted if id_ in found.not_found],
            list(found.bad_in_order(wanted)),
        )

    async def email_values(self, ids: Iterable[str]) -> dict[str, EmailValues]:
        """Return the immutable values of emails, by id. Bad emails and unknown ids are left out.

        Raises the same errors as `emails`.
        """
        found = await self._find(list(dict.fromkeys(ids)), self._get_immutable)
        return {
            id_: EmailValues(
                email.blob_id,
                email.size,
                unix_seconds(email.received_at),
                strings(email.message_id),
            )
            for id_, email in found.emails.items()
        }

    async def _find(
        self, wanted: Sequence[str], get: Callable[[Sequence[str]], Awaitable[Got[E]]]
    ) -> FoundEmails[E]:
        found = FoundEmails[E]()
        missing, too_large = wanted, 0
        is_repeated, before = False, 0
        # The server may have shortened a response. Request what is missing again, until a repeated
        # request brings nothing new.
        while missing and not (is_repeated and len(missing) == before):
            is_repeated, before = before > 0, len(missing)
            pending, missing = missing, list[str]()
            while pending:
                try:
                    requested, response = await self._get_first(pending, get)
                except AnswerTooLargeError as error:
                    # It is too large even if only one email is requested.
                    too_large += 1
                    if too_large > _MOST_TOO_LARGE:
                        raise
                    requested = pending[:1]
                    found.bad[pending[0]] = BadEmail(
                        id=pending[0], reason=str(error), is_unanswered=True
                    )
                else:
                    await found.add(requested, response)
                missing += found.missing(requested)
                pending = pending[len(requested) :]
        for id_ in missing:
            found.bad[id_] = BadEmail(id=id_, reason=_NOT_RETURNED, is_unanswered=True)
        return found

    async def _get_emails(self, ids: Sequence[str]) -> Got[Email]:
        arguments = {"ids": ids, "properties": EMAIL_PROPERTIES}
        response = await self._request_one("Email/get", arguments)
        return await self._decode_get(response, GetResponse[Email], Email, ids)

    async def _get_immutable(self, ids: Sequence[str]) -> Got[ImmutableEmail]:
        properties = IMMUTABLE_PROPERTIES if self._has_message_ids else IMMUTABLE_PROPERTIES[:-1]
        arguments = {"ids": ids, "properties": properties}
        try:
            response = await self._request_one("Email/get", arguments)
        except MethodError as error:
            if error.kind != "invalidArguments" or not self._has_message_ids:
                raise
            arguments["properties"] = IMMUTABLE_PROPERTIES[:-1]
            response = await self._request_one("Email/get", arguments)
            self._has_message_ids = False
        return await self._decode_get(response, GetResponse[ImmutableEmail], ImmutableEmail, ids)


def _bad_emails(errors: Iterable[ProtocolError]) -> Iterator[BadEmail]:
    for error in errors:
        if not isinstance(error, UnusableError):
            continue
        # Without a usable id, nobody knows which email this is: it counts as not returned.
        with contextlib.suppress(ProtocolError):
            email = decode_leniently(error.sent, EmailIdentity, "an email")
            yield BadEmail(id=email.id, reason=error.reason, mailbox_ids=email.mailbox_ids)


def strings(value: object) -> tuple[str, ...]:
    """Return the strings in a list; none if the value is not a list."""
    if not isinstance(value, list):
        return ()
    return tuple(each for each in value if isinstance(each, str))
