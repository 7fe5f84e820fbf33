"""The client of one account: its mailboxes, its emails, their changes (RFC 8621), and its blobs.

`connect` finds the session from a location and credentials. For every requested email id, the email
is returned, or the id is reported as not found, or it is a bad email.
"""

import contextlib
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Generic, NamedTuple, TypedDict, TypeVar, Unpack

import httpx
import trio

from jmapfs import __version__
from jmapfs.errors import MethodError, ProtocolError, RequestError
from jmapfs.jmap.api import DEFAULT_DEADLINE, MethodCall, MethodResponse, is_too_large
from jmapfs.jmap.blob_get import BlobGetMethods
from jmapfs.jmap.blobs import BlobMethods
from jmapfs.jmap.credentials import Credentials
from jmapfs.jmap.discovery import Resolver, discover, look_up
from jmapfs.jmap.http import CONCURRENCY, LONGEST_WAIT, Transport
from jmapfs.jmap.lenient import UnusableError, decode_leniently
from jmapfs.jmap.login import Login
from jmapfs.jmap.mailboxes import Got, MailboxMethods
from jmapfs.jmap.push import PushMethods
from jmapfs.jmap.session import Session
from jmapfs.jmap.types import (
    EMAIL_PROPERTIES,
    IMMUTABLE_PROPERTIES,
    BadEmail,
    ChangesResponse,
    Email,
    EmailIdentity,
    GetResponse,
    ImmutableEmail,
    Mailbox,
    QueryResponse,
)

E = TypeVar("E", Email, ImmutableEmail)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
# How many ids to request at once; if the server rejects a limit, the next. None is its own limit.
_ID_LIMITS = (10_000, 1_000, 100, None)
# James refuses a limit that is smaller than a single change of many emails.
_MAX_CHANGES = 10_000
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
class Changes:
    """Ids that were created, updated or destroyed since a state (RFC 8620 §5.2).

    `new_state` is the state to continue from. If `has_more` is true, there are more changes after
    that state. If `has_more` is true but `new_state` is the state of the request, everything must
    be listed again. A server may put an id into several lists. In updated mailboxes, only
    `updated_properties` changed (RFC 8621 §2.2); if None, any property may have changed.
    """

    new_state: str
    has_more: bool
    created: tuple[str, ...]
    updated: tuple[str, ...]
    destroyed: tuple[str, ...]
    updated_properties: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class EmailChanges:
    """The emails that were created or updated since a state, and the ids of those that are gone.

    The `bad` emails have changed too, but they cannot be shown. `new_state` and `has_more` have the
    same meaning as in Changes.
    """

    new_state: str
    has_more: bool
    emails: tuple[Email, ...]
    gone: tuple[str, ...]
    bad: tuple[BadEmail, ...] = ()


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


class _Found(Generic[E]):
    """The results of one or more Email/get: emails and bad emails by id, and ids not found."""

    def __init__(self) -> None:
        self.emails: dict[str, E] = {}
        self.not_found: set[str] = set()
        self.bad: dict[str, BadEmail] = {}

    def add(self, requested: Iterable[str], response: Got[E]) -> None:
        """Add the results for the `requested` ids, and ignore all others."""
        wanted = set(requested)
        self.emails.update((email.id, email) for email in response.items if email.id in wanted)
        self.bad.update((bad.id, bad) for bad in _bad_emails(response.unusable) if bad.id in wanted)
        self.not_found.update(
            id_
            for id_ in response.not_found
            if id_ in wanted and id_ not in self.emails and id_ not in self.bad
        )

    def missing(self, ids: Iterable[str]) -> list[str]:
        return [
            id_
            for id_ in ids
            if id_ not in self.emails and id_ not in self.not_found and id_ not in self.bad
        ]

    def in_order(self, ids: Iterable[str]) -> tuple[E, ...]:
        return tuple(self.emails[id_] for id_ in ids if id_ in self.emails)

    def bad_in_order(self, ids: Iterable[str]) -> tuple[BadEmail, ...]:
        return tuple(self.bad[id_] for id_ in ids if id_ in self.bad and id_ not in self.emails)


class Client(MailboxMethods, BlobMethods, BlobGetMethods, PushMethods):
    """The mail of one account, read only. Safe for many tasks at once.

    All methods raise the errors of Api.request. Each request has DEFAULT_DEADLINE seconds.
    """

    _has_message_ids = True
    _id_limits: Sequence[int | None] = _ID_LIMITS

    async def email_state(self) -> str:
        """Return the current Email state. No emails are requested."""
        return (await self._get_emails([])).state

    async def query_ids(self, position: int, *, count: bool = False) -> IdPage:
        """Return ids of emails, from a position of the list of all emails. The order is any order.

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
        """Return the numbers of emails. This takes one HTTP request if possible."""
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
        queried, counted, state = responses
        total = None
        boxes: Sequence[Mailbox] = ()
        if queried.error is None:
            total = self._decode(queried, QueryResponse, lenient=True).total
        if counted.error is None:
            boxes = self._decode_get(counted, GetResponse[Mailbox], Mailbox).items
        return ServerCounts(
            self._decode_get(state, GetResponse[Email], Email).state,
            total,
            {box.id: box.total_emails for box in boxes},
        )

    async def changed_ids(self, since_state: str) -> set[str]:
        """Return the ids of the emails that were created or updated since a state.

        Raises the same errors as `mailbox_changes`.
        """
        ids: set[str] = set()
        while True:
            arguments = {"sinceState": since_state, "maxChanges": _MAX_CHANGES}
            [response] = await self.request([self._call("Email/changes", arguments)])
            changes = self._decode_changes(response)
            ids.update(changes.created, changes.updated)
            if not changes.has_more or changes.new_state == since_state:
                return ids
            since_state = changes.new_state

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
                (email.received_at - _EPOCH) // _SECOND,
                _strings(email.message_id),
            )
            for id_, email in found.emails.items()
        }

    async def _find(
        self, wanted: Sequence[str], get: Callable[[Sequence[str]], Awaitable[Got[E]]]
    ) -> _Found[E]:
        found = _Found[E]()
        missing = wanted
        # The server may have shortened a response. Request what is missing once more.
        for _ in range(2):
            pending, missing = missing, list[str]()
            while pending:
                requested, response = await self._get_first(pending, get)
                found.add(requested, response)
                missing += found.missing(requested)
                pending = pending[len(requested) :]
        for id_ in missing:
            found.bad[id_] = BadEmail(id=id_, reason=_NOT_RETURNED)
        return found

    async def changes(self, mailbox_state: str, email_state: str) -> tuple[Changes, EmailChanges]:
        """Return the changes of mailboxes and of emails. This takes one HTTP request if possible.

        The call for the mailboxes comes first. Raises the same errors as `mailbox_changes`.
        """
        arguments = {"sinceState": mailbox_state, "maxChanges": _MAX_CHANGES}
        mailbox_call = self._call("Mailbox/changes", arguments, "mailboxes")
        mailboxes, *emails = await self._request_changes(email_state, mailbox_call)
        changes = self._decode_changes(mailboxes)
        return changes, await self._decode_email_changes(emails)

    async def mailbox_changes(self, since_state: str) -> Changes:
        """Return the changes of mailboxes since a state.

        Raises MethodError if everything has to be listed again. The kind of the error is then
        `cannotCalculateChanges` or, for an unknown state, `invalidArguments` or `serverFail`.
        """
        arguments = {"sinceState": since_state, "maxChanges": _MAX_CHANGES}
        call = self._call("Mailbox/changes", arguments)
        [response] = await self.request([call])
        return self._decode_changes(response)

    async def email_changes(self, since_state: str) -> EmailChanges:
        """Return the changes of emails since a state, including the changed emails.

        Raises the same errors as `mailbox_changes`.
        """
        return await self._decode_email_changes(await self._request_changes(since_state))

    def _decode_changes(self, response: MethodResponse) -> Changes:
        decoded = self._decode(response, ChangesResponse)
        properties = decoded.updated_properties
        names = _strings(properties)
        return Changes(
            new_state=decoded.new_state,
            has_more=decoded.has_more_changes or False,
            created=tuple(decoded.created or ()),
            updated=tuple(decoded.updated or ()),
            destroyed=tuple(decoded.destroyed or ()),
            updated_properties=frozenset(names) if properties == list(names) else None,
        )

    async def _request_changes(self, since_state: str, *before: MethodCall) -> list[MethodResponse]:
        """Make the calls `before`, then Email/changes. Return their responses, errors included.

        If the server accepts so many calls in one request, Email/get for the changed emails is also
        called, and its responses come last.
        """
        # If more emails changed than one Email/get returns, they are requested in parts.
        arguments = {"sinceState": since_state, "maxChanges": _MAX_CHANGES}
        calls = [*before, self._call("Email/changes", arguments, "emails")]
        gets = [
            self._get_referenced("created", "emails", "Email/changes"),
            self._get_referenced("updated", "emails", "Email/changes"),
        ]
        if self.session.limits.max_calls_in_request >= len(calls) + len(gets):
            try:
                return await self.request([*calls, *gets], raise_errors=False)
            except RequestError as error:
                # If too many emails changed for Email/get, some servers reject the whole request.
                if not is_too_large(error):
                    raise
        return await self.request(calls, raise_errors=False)

    async def _decode_email_changes(self, responses: Sequence[MethodResponse]) -> EmailChanges:
        """Decode Email/changes and the Email/get after it. Then request the missing emails."""
        changes = self._decode_changes(responses[0])
        ids = list(dict.fromkeys((*changes.created, *changes.updated)))
        found = _Found[Email]()
        for response in responses[1:]:
            # Email/get fails if there are more emails than the server returns at once. Then
            # `_add_missing` requests the emails in parts.
            if response.error is None:
                found.add(ids, self._decode_get(response, GetResponse[Email], Email))
        await self._add_missing(ids, found)
        # A server may put an id into several lists. An email that was found is not gone.
        gone = found.not_found.union(changes.destroyed).difference(found.emails, found.bad)
        return EmailChanges(
            new_state=changes.new_state,
            has_more=changes.has_more,
            emails=found.in_order(ids),
            gone=tuple(sorted(gone)),
            bad=found.bad_in_order(ids),
        )

    async def _add_missing(self, ids: Sequence[str], found: _Found[Email]) -> None:
        rest = await self.emails(found.missing(ids))
        found.emails.update((email.id, email) for email in rest.emails)
        found.not_found.update(rest.not_found)
        found.bad.update((bad.id, bad) for bad in rest.bad)

    async def _get_emails(self, ids: Sequence[str]) -> Got[Email]:
        arguments = {"ids": ids, "properties": EMAIL_PROPERTIES}
        [response] = await self.request([self._call("Email/get", arguments)])
        return self._decode_get(response, GetResponse[Email], Email)

    async def _get_immutable(self, ids: Sequence[str]) -> Got[ImmutableEmail]:
        properties = IMMUTABLE_PROPERTIES if self._has_message_ids else IMMUTABLE_PROPERTIES[:-1]
        arguments = {"ids": ids, "properties": properties}
        try:
            [response] = await self.request([self._call("Email/get", arguments)])
        except MethodError as error:
            if error.kind != "invalidArguments" or not self._has_message_ids:
                raise
            arguments["properties"] = IMMUTABLE_PROPERTIES[:-1]
            [response] = await self.request([self._call("Email/get", arguments)])
            self._has_message_ids = False
        return self._decode_get(response, GetResponse[ImmutableEmail], ImmutableEmail)

    def _get_referenced(self, path: str, call_id: str, method: str) -> MethodCall:
        """Return a call of Email/get for the ids at `path` in the result of another call (§3.7)."""
        reference = {"resultOf": call_id, "name": method, "path": f"/{path}"}
        return self._call(
            "Email/get", {"#ids": reference, "properties": EMAIL_PROPERTIES}, f"get {path}"
        )


def _bad_emails(errors: Iterable[ProtocolError]) -> Iterator[BadEmail]:
    for error in errors:
        if not isinstance(error, UnusableError):
            continue
        # Without a usable id, the email is one that the server does not return.
        with contextlib.suppress(ProtocolError):
            email = decode_leniently(error.sent, EmailIdentity, "an email")
            yield BadEmail(id=email.id, reason=error.reason, mailbox_ids=email.mailbox_ids)


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(each for each in value if isinstance(each, str))


class ConnectOptions(TypedDict, total=False):
    """The options of `open_session` and `connect`."""

    rewrite_origin: bool
    ca_file: Path | None
    longest_wait: float
    on_wait: Callable[[str], None] | None
    network: httpx.AsyncBaseTransport | None
    resolver: Resolver
    deadline: float
    concurrency: int
    user_agent: str


class Connection(NamedTuple):
    """A session, and the transport that found it."""

    session: Session
    transport: Transport


@asynccontextmanager
async def open_session(
    location: str,
    login: Login | Credentials,
    *,
    rewrite_origin: bool = False,
    ca_file: Path | None = None,
    longest_wait: float = LONGEST_WAIT,
    on_wait: Callable[[str], None] | None = None,
    network: httpx.AsyncBaseTransport | None = None,
    resolver: Resolver = look_up,
    deadline: float = DEFAULT_DEADLINE,
    concurrency: int = CONCURRENCY,
    user_agent: str = f"jmapfs/{__version__}",
) -> AsyncIterator[Connection]:
    """Find the session for `location`: a session URL, a host or a mail address.

    With `rewrite_origin`, all URLs keep the origin that `location` leads to. Finding the session
    takes at most `deadline` seconds, and up to `longest_wait` seconds more if the server asks to
    wait. At most `concurrency` requests are in flight. `network` and `resolver` replace the network
    in tests. `ca_file` and `on_wait` have the same meaning as in Transport. Raises ConfigError,
    AuthenticationError, UnreachableError or ServerError if there is no session.
    """
    if not isinstance(login, Login):
        login = Login(login)
    transport = Transport(
        login,
        user_agent=user_agent,
        network=network,
        ca_file=ca_file,
        longest_wait=longest_wait,
        on_wait=on_wait,
        concurrency=concurrency,
    )
    async with transport:
        async with login.attempt():
            session = await discover(
                location,
                transport,
                until=trio.current_time() + deadline,
                resolver=resolver,
                rewrite_origin=rewrite_origin,
            )
        yield Connection(session, transport)


@asynccontextmanager
async def connect(
    location: str,
    login: Login | Credentials,
    *,
    account: str | None = None,
    **options: Unpack[ConnectOptions],
) -> AsyncIterator[Client]:
    """Find the session for `location`, and yield a client for one of its accounts.

    `account` is the id or name of an account, or None for the primary account. The `options` are
    those of `open_session`. Raises the errors of `open_session`, and ConfigError or ServerError if
    there is no such account.
    """
    async with open_session(location, login, **options) as (session, transport):
        yield Client(transport, session, session.mail_account(account).id)
