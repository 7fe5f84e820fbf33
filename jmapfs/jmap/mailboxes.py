"""The mailboxes of an account (RFC 8621 §2), and what all /get responses have in common.

Objects are decoded one by one: an odd object never makes a whole response fail (`jmap.lenient`).
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from jmapfs.errors import MethodError, ProtocolError, RequestError, printable
from jmapfs.jmap.answers import (
    MOST_MAILBOXES,
    SMALL_ANSWER,
    AnswerTooLargeError,
    run_decoder,
)
from jmapfs.jmap.api import Api
from jmapfs.jmap.lenient import UnusableError, decode_leniently
from jmapfs.jmap.method_calls import MethodResponse, is_too_large
from jmapfs.jmap.series import PageCount
from jmapfs.jmap.types import (
    MAILBOX_PROPERTIES,
    Email,
    GetResponse,
    ImmutableEmail,
    Mailbox,
    QueryResponse,
    RawGetResponse,
)

_log = logging.getLogger(__name__)

T = TypeVar("T", Email, ImmutableEmail, Mailbox)

# How often to try to list the ids of all mailboxes: they may change during a listing.
_MAX_LISTINGS = 4
# A server may return an object twice, or others than the requested ones. More than this is a fault.
_MOST_UNREQUESTED = 1000


@dataclass(frozen=True, slots=True)
class Got(Generic[T]):
    """The response to a /get. `unusable` has an error for each object that cannot be used."""

    state: str
    items: Sequence[T]
    not_found: Sequence[str]
    unusable: Sequence[ProtocolError] = ()

    @property
    def unusable_size(self) -> int:
        """The bytes of the objects that cannot be used."""
        return sum(len(one.sent) for one in self.unusable if isinstance(one, UnusableError))


class MailboxMethods(Api):
    """Mailbox/get and Mailbox/query, and the decoding of /get and /query."""

    _mailbox_error = ""

    async def mailboxes(self) -> tuple[list[Mailbox], str]:
        """Return all mailboxes of the account that have a usable id, and the Mailbox state.

        If the server rejects a request for all mailboxes as too large, they are requested in parts.
        The returned state is then the state before the first part. Raises ProtocolError if the
        server leaves out a mailbox, or has more than MOST_MAILBOXES.
        """
        try:
            response = await self._get_mailboxes(None)
        except AnswerTooLargeError:
            return await self._mailboxes_in_parts()
        except (MethodError, RequestError) as error:
            if not is_too_large(error):
                raise
            return await self._mailboxes_in_parts()
        unique = {mailbox.id: mailbox for mailbox in response.items}
        return list(unique.values()), response.state

    async def _mailboxes_in_parts(self) -> tuple[list[Mailbox], str]:
        before = await self._get_mailboxes([])
        ids = await self._mailbox_ids()
        found: dict[str, Mailbox] = {}
        while ids:
            requested, response = await self._get_first(ids, self._get_mailboxes)
            found.update((mailbox.id, mailbox) for mailbox in response.items)
            gone = set(response.not_found)
            missing = [id_ for id_ in requested if id_ not in found and id_ not in gone]
            # A mailbox whose id is unusable cannot be told from one that is missing.
            if len(missing) > len(response.unusable):
                raise ProtocolError(
                    f"the server answers Mailbox/get without {len(missing)} of {len(requested)} "
                    f"mailboxes, the first being {printable(missing[0], 80)}"
                )
            ids = ids[len(requested) :]
        return list(found.values()), before.state

    async def _mailbox_ids(self) -> Sequence[str]:
        """Return the ids of all mailboxes. All pages are from the same state of the query."""
        for _ in range(_MAX_LISTINGS):
            ids: dict[str, None] = {}
            states: set[str | None] = set()
            pages = PageCount("the server's list of mailboxes")
            while True:
                arguments = {"position": len(ids), "limit": self.max_objects_in_get}
                page = await self._query("Mailbox/query", arguments)
                states.add(page.query_state)
                fresh = [id_ for id_ in page.ids if id_ not in ids]
                ids.update(dict.fromkeys(fresh))
                pages.add(len(ids))
                if len(ids) > MOST_MAILBOXES:
                    raise ProtocolError(
                        f"the account has more than {MOST_MAILBOXES:,} mailboxes, which is the"
                        " most that jmapfs can show"
                    )
                if not page.ids:
                    break
                if not fresh:
                    # All ids came before: the list has changed, or the server ignores `position`.
                    states.add("")
                    break
            # If the list changed between two pages, a mailbox may be on neither of them.
            if len(states) == 1:
                return list(ids)
        raise ProtocolError("the server's list of mailboxes changes each time it is read")

    async def _get_mailboxes(self, ids: Sequence[str] | None) -> Got[Mailbox]:
        arguments = {"ids": ids, "properties": MAILBOX_PROPERTIES}
        response = await self._request_one("Mailbox/get", arguments)
        got = await self._decode_get(response, GetResponse[Mailbox], Mailbox, ids)
        # The list is requested again and again. The same error is logged once.
        if got.unusable and str(got.unusable[0]) != self._mailbox_error:
            self._mailbox_error = str(got.unusable[0])
            count = len(got.unusable)
            text = "a mailbox is" if count == 1 else f"{count:,} mailboxes are"
            _log.warning("%s left out: %s", text, self._mailbox_error)
        return got

    async def _query(self, name: str, arguments: Mapping[str, object]) -> QueryResponse:
        response = await self._request_one(name, arguments)
        page = await self._decode(response, QueryResponse, lenient=True)
        self.traffic.objects += len(page.ids)
        return page

    async def _decode_get(
        self,
        response: MethodResponse,
        type_: type[GetResponse[T]],
        item_type: type[T],
        ids: Sequence[str] | None,
    ) -> Got[T]:
        """Decode the response to a /get for `ids`, None if all objects were requested.

        This is fast if all objects are usable.
        """
        most = MOST_MAILBOXES if ids is None else len(ids) + _MOST_UNREQUESTED
        decode_as = partial(self._decode_objects, response, type_, item_type, most)
        got = await run_decoder(decode_as, response.size)
        self.traffic.objects += len(got.items) + len(got.not_found)
        return got

    def _decode_objects(
        self, response: MethodResponse, type_: type[GetResponse[T]], item_type: type[T], most: int
    ) -> Got[T]:
        got: GetResponse[T] | None = None
        if response.size <= SMALL_ANSWER:
            with suppress(ProtocolError):
                got = self._checked(response, response.decode(type_))
        if got is not None:
            _require_few(response, len(got.items), most)
            return Got(got.state, got.items, got.not_found or ())
        raw = self._checked(response, response.decode_leniently(RawGetResponse))
        _require_few(response, len(raw.items), most)
        what = f"an object in the server's response to {response.name}"
        items, unusable = list[T](), list[ProtocolError]()
        for item in raw.items:
            try:
                items.append(decode_leniently(item, item_type, what))
            except ProtocolError as error:
                # With its traceback, an error takes some kilobytes.
                error.__context__ = None
                unusable.append(error.with_traceback(None))
        return Got(raw.state, items, raw.not_found or (), unusable)


def _require_few(response: MethodResponse, count: int, most: int) -> None:
    if count > most:
        raise AnswerTooLargeError(
            f"the server's response to {response.name} has {count:,} objects, which is more than"
            f" {most:,}"
        )
