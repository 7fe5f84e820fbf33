"""The changes of mailboxes and emails since a state: Mailbox/changes and Email/changes.

The changed emails come with the changes, in one request if the server accepts that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jmapfs.errors import RequestError
from jmapfs.jmap.answers import AnswerTooLargeError
from jmapfs.jmap.emails import EmailMethods, FoundEmails, strings
from jmapfs.jmap.method_calls import MethodCall, MethodResponse, is_too_large
from jmapfs.jmap.series import ChainProgress
from jmapfs.jmap.types import EMAIL_PROPERTIES, BadEmail, ChangesResponse, Email, GetResponse

# James refuses a limit that is smaller than a single change of many emails.
_MAX_CHANGES = 10_000


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

    @property
    def ids(self) -> Iterable[str]:
        """All ids in the lists."""
        return (*self.created, *self.updated, *self.destroyed)


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

    @property
    def ids(self) -> Iterable[str]:
        """The ids of all emails that have changed."""
        return (*(one.id for one in self.emails), *self.gone, *(one.id for one in self.bad))


class ChangeMethods(EmailMethods):
    """Mailbox/changes and Email/changes."""

    async def changed_ids(self, since_state: str) -> set[str]:
        """Return the ids of the emails that were created or updated since a state.

        The set is incomplete if the server reports more changes, but does not return them. Raises
        the same errors as `email_changes`.
        """
        ids: set[str] = set()
        progress = ChainProgress(since_state)
        while True:
            [response] = await self.request([self._changes_call("Email", since_state)])
            changes = await self._decode_changes(response)
            ids.update(changes.created, changes.updated)
            if not changes.has_more or not progress.add(changes.new_state, changes.ids, None):
                return ids
            since_state = changes.new_state

    async def changes(self, mailbox_state: str, email_state: str) -> tuple[Changes, EmailChanges]:
        """Return the changes of mailboxes and of emails. This takes one HTTP request if possible.

        The call for the mailboxes comes first. Raises the same errors as `email_changes`.
        """
        mailbox_call = self._changes_call("Mailbox", mailbox_state, "mailboxes")
        mailboxes, *emails = await self._request_changes(email_state, mailbox_call)
        changes = await self._decode_changes(mailboxes)
        return changes, await self._decode_email_changes(emails)

    async def email_changes(self, since_state: str) -> EmailChanges:
        """Return the changes of emails since a state, including the changed emails.

        Raises MethodError if everything has to be listed again. The kind of the error is then
        `cannotCalculateChanges` or, for an unknown state, `invalidArguments` or `serverFail`.
        """
        return await self._decode_email_changes(await self._request_changes(since_state))

    def _changes_call(self, kind: str, since_state: str, call_id: str = "0") -> MethodCall:
        arguments = {"sinceState": since_state, "maxChanges": _MAX_CHANGES}
        return self._call(f"{kind}/changes", arguments, call_id)

    async def _decode_changes(self, response: MethodResponse) -> Changes:
        decoded = await self._decode(response, ChangesResponse)
        properties = decoded.updated_properties
        names = strings(properties)
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
        calls = [*before, self._changes_call("Email", since_state, "emails")]
        gets = [
            self._get_referenced("created", "emails", "Email/changes"),
            self._get_referenced("updated", "emails", "Email/changes"),
        ]
        if self.session.limits.max_calls_in_request >= len(calls) + len(gets):
            try:
                return await self.request([*calls, *gets], raise_errors=False)
            except AnswerTooLargeError:
                # The emails are requested in parts, so that the large one is found.
                pass
            except RequestError as error:
                # If too many emails changed for Email/get, some servers reject the whole request.
                if not is_too_large(error):
                    raise
        return await self.request(calls, raise_errors=False)

    async def _decode_email_changes(self, responses: Sequence[MethodResponse]) -> EmailChanges:
        """Decode Email/changes and the Email/get after it. Then request the missing emails."""
        changes = await self._decode_changes(responses[0])
        ids = list(dict.fromkeys((*changes.created, *changes.updated)))
        found = FoundEmails[Email]()
        for response in responses[1:]:
            # Email/get fails if there are more emails than the server returns at once. Then
            # `_add_missing` requests the emails in parts.
            if response.error is None:
                got = await self._decode_get(response, GetResponse[Email], Email, ids)
                await found.add(ids, got)
        await self._add_missing(ids, found)
        # A server may put an id into several lists. An email that was found is not gone.
        destroyed = set(changes.destroyed)
        for id_ in [id_ for id_, bad in found.bad.items() if bad.is_unanswered]:
            if id_ in destroyed:
                del found.bad[id_]
        gone = found.not_found.union(destroyed).difference(found.emails, found.bad)
        return EmailChanges(
            new_state=changes.new_state,
            has_more=changes.has_more,
            emails=found.in_order(ids),
            gone=tuple(sorted(gone)),
            bad=found.bad_in_order(ids),
        )

    async def _add_missing(self, ids: Sequence[str], found: FoundEmails[Email]) -> None:
        rest = await self.emails(found.missing(ids))
        found.emails.update((email.id, email) for email in rest.emails)
        found.not_found.update(rest.not_found)
        found.bad.update((bad.id, bad) for bad in rest.bad)

    def _get_referenced(self, path: str, call_id: str, method: str) -> MethodCall:
        """Return a call of Email/get for the ids at `path` in the result of another call (§3.7)."""
        reference = {"resultOf": call_id, "name": method, "path": f"/{path}"}
        return self._call(
            "Email/get", {"#ids": reference, "properties": EMAIL_PROPERTIES}, f"get {path}"
        )
