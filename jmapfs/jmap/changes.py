"""What changed since a state: Email/changes and Mailbox/changes (RFC 8620 §5.2)."""

from __future__ import annotations

from dataclasses import dataclass

from jmapfs.jmap.account import AccountCalls
from jmapfs.jmap.api import DEFAULT_DEADLINE
from jmapfs.jmap.mail import ChangesAnswer


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


class ChangeCalls(AccountCalls):
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
