"""Reading all mailboxes of an account, at once or, where the server insists, in parts."""

from __future__ import annotations

from collections.abc import Sequence

from jmapfs.errors import MethodError, ProtocolError, RequestError
from jmapfs.jmap.account import AccountCalls, is_too_large
from jmapfs.jmap.api import DEFAULT_DEADLINE
from jmapfs.jmap.mail import Mailbox, MailboxGetAnswer, QueryAnswer
from jmapfs.jmap.wording import printable

# How often a listing in parts is begun again because the mailboxes changed meanwhile.
_LISTINGS = 4


class MailboxCalls(AccountCalls):
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
