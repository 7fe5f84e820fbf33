"""Lists all emails of an account: first their ids, then, in parts, the emails.

    Email state ── ids ── their emails ── emails that were not listed ── (changes since the state)

The Email state is read before the ids. Changes during the listing are therefore among the changes
since that state (RFC 8620 §3.10: calls are not isolated from each other). After each listing,
`Synchronizer` stores these changes.

The ids are durable before the first email is fetched, and each part before it counts. An
interrupted listing resumes with the emails that are not fetched yet. A `ListingTarget` decides
where the emails are stored: a first listing goes straight into the index, a later one is staged
(`sync.relisting`).
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import trio

from jmapfs.errors import lone_errors
from jmapfs.index.rows import ListingProgress
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.emails import EmailsFound
from jmapfs.jmap.types import BadEmail, Email
from jmapfs.sync.account_check import require_own_ids
from jmapfs.sync.bad_emails import listed_but_not_found, name_some
from jmapfs.sync.id_listing import IdListing, list_ids

_log = logging.getLogger(__name__)

ListingReport = Callable[[int, int | None], None]
"""Called with the number of emails fetched so far, and their total; None until it is known."""

_REQUESTS_AT_ONCE: Final = 3
_EMAILS_AT_ONCE: Final = 1000
# A small first part arrives early, so storing begins early.
_FIRST_EMAILS: Final = 500
_UNLISTED_AT_ONCE: Final = 1000


_Numbered = tuple[int, str]  # an id of the listing with its number


class _Part(NamedTuple):
    """A part of the listed ids: their numbers, how many they are, and what the server answered."""

    numbers: range
    size: int
    found: EmailsFound


class ListingTarget(ABC):
    """Where the listed emails are stored. The methods run in a worker thread."""

    def __init__(self, writer: IndexWriter) -> None:
        self._writer = writer

    @abstractmethod
    def progress(self) -> ListingProgress | None:
        """Return how far an unfinished listing has come, or None."""

    @abstractmethod
    def begin(self, progress: ListingProgress, ids: Iterable[str]) -> ListingProgress:
        """Begin a listing: store the listed ids. Return the progress that is stored."""

    @abstractmethod
    def put(self, found: EmailsFound) -> None:
        """Store what the server has answered; this is a part of a transaction."""

    @abstractmethod
    def unlisted(self, after: str, count: int) -> list[str]:
        """Return the ids of `count` known emails that were not listed, in order of ids."""

    @abstractmethod
    def finish(self, progress: ListingProgress) -> None:
        """Store that everything is listed."""

    def pending(self) -> list[tuple[int, str]]:
        """Return the listed ids that are not fetched yet, with their numbers, in order."""
        return self._writer.listed.pending()

    def store(self, numbers: range, found: EmailsFound, progress: ListingProgress) -> None:
        """Store the results for listed ids with the progress, in one transaction.

        `numbers` has those of the ids. Each id in this range is stored now, or is stored already.
        An id that is not found is bad, unless the changes report it as destroyed.
        """
        bad = [*found.bad, *listed_but_not_found(found.not_found)]
        with self._writer.transaction():
            self.put(found)
            self._writer.listed.mark_fetched(numbers, bad)
            self._writer.set_listing_progress(progress)

    def store_unlisted(self, found: EmailsFound) -> None:
        """Store what the server answers about emails that were not listed."""
        with self._writer.transaction():
            self.put(found)

    def without_copies(self, emails: Iterable[Email]) -> list[Email]:
        """Return the emails whose blobs are not listed under other ids in the same mailboxes."""
        return [email for email in emails if not self._writer.staged.is_copy(email)]

    def listed_counts(self) -> dict[str, int]:
        """Return how many listed emails each mailbox has, by mailbox id."""
        return self._writer.staged.listed_counts()


class FirstListing(ListingTarget):
    """Stores the emails in the index, which is not shown until the listing is complete.

    If an id stands for another email than at the beginning of an interrupted listing, storing it
    raises ReusedIdsError, unless blob ids prove the content.
    """

    def __init__(self, client: Client, writer: IndexWriter) -> None:
        super().__init__(writer)
        self._client = client

    def progress(self) -> ListingProgress | None:
        """Return how far an unfinished listing has come, or None."""
        return self._writer.listing_progress()

    def begin(self, progress: ListingProgress, ids: Iterable[str]) -> ListingProgress:
        """Begin a listing: store the listed ids. Return the progress that is stored."""
        with self._writer.transaction():
            self._writer.mark_unlisted()
            self._writer.listed.begin(ids)
            self._writer.set_listing_progress(progress)
            # The index is consistent when the changes since `email_state` are stored.
            self._writer.set_state(replace(self._writer.state(), consistent=False))
        return progress

    def put(self, found: EmailsFound) -> None:
        """Store what the server has answered; this is a part of a transaction."""
        require_own_ids(self._client, self._writer, found.emails)
        self._writer.put_emails(found.emails)
        bad = [one.id for one in found.bad if not one.is_unanswered]
        self._writer.remove_emails([*found.not_found, *bad])

    def unlisted(self, after: str, count: int) -> list[str]:
        """Return the ids of `count` known emails that were not listed, in order of ids."""
        return self._writer.unlisted_emails(after, count)

    def finish(self, progress: ListingProgress) -> None:
        """Store that everything is listed."""
        with self._writer.transaction():
            # The mailbox state is empty, so the mailboxes are requested after the listing.
            state = replace(
                self._writer.state(), email_state=progress.email_state, mailbox_state=""
            )
            self._writer.set_state(state)
            self._writer.listed.end()
            self._writer.end_listing()


async def list_emails(client: Client, target: ListingTarget, report: ListingReport) -> None:
    """List all emails into the target; an interrupted listing is resumed. Raises client errors."""
    progress = await trio.to_thread.run_sync(target.progress)
    listing: IdListing | None = None
    if progress is None or progress.ids is None:
        report(0, None)
        email_state = await client.email_state()
        listing = await list_ids(client)
        progress = ListingProgress(
            email_state, ids=len(listing.ids), total=listing.total, is_whole=listing.is_whole
        )
    progress = await _EmailFetcher(client, target, progress, report).run(listing)
    await _settle_unlisted(client, target, progress)
    await trio.to_thread.run_sync(target.finish, progress)


class _EmailFetcher:
    """Fetches and stores the emails of listed ids. While a part is stored, others are fetched."""

    def __init__(
        self,
        client: Client,
        target: ListingTarget,
        progress: ListingProgress,
        report: ListingReport,
    ) -> None:
        self._client = client
        self._target = target
        self._progress = progress
        self._report = report

    async def run(self, listing: IdListing | None) -> ListingProgress:
        """Fetch the emails of a new listing, or of the interrupted one; return the progress."""
        if listing is None:
            pending = await trio.to_thread.run_sync(self._target.pending)
        else:
            # `ListedIds` numbers the ids in the same way.
            pending = list(enumerate(listing.ids, 1))
        self._report_progress()
        with lone_errors():
            async with trio.open_nursery() as nursery:
                send, receive = trio.open_memory_channel[_Part](0)
                nursery.start_soon(self._store_parts, listing, receive)
                parts = self._parts(pending)
                async with send:
                    for _ in range(_REQUESTS_AT_ONCE):
                        nursery.start_soon(self._fetch_parts, parts, send.clone())
        return self._progress

    def _parts(self, pending: Sequence[_Numbered]) -> Iterator[Sequence[_Numbered]]:
        start, count = 0, _FIRST_EMAILS
        while start < len(pending):
            count = min(count, self._client.max_objects_in_get)
            yield pending[start : start + count]
            start, count = start + count, _EMAILS_AT_ONCE

    async def _fetch_parts(
        self, parts: Iterator[Sequence[_Numbered]], send: trio.MemorySendChannel[_Part]
    ) -> None:
        async with send:
            for part in parts:
                found = await self._client.emails(email_id for _, email_id in part)
                await send.send(_Part(range(part[0][0], part[-1][0] + 1), len(part), found))

    async def _store_parts(
        self, listing: IdListing | None, receive: trio.MemoryReceiveChannel[_Part]
    ) -> None:
        if listing is not None:
            self._progress = await trio.to_thread.run_sync(
                self._target.begin, self._progress, listing.ids
            )
        async with receive:
            async for numbers, size, found in receive:
                self._progress = replace(self._progress, listed=self._progress.listed + size)
                await trio.to_thread.run_sync(self._target.store, numbers, found, self._progress)
                self._report_progress()

    def _report_progress(self) -> None:
        self._report(self._progress.listed, self._progress.ids or None)


async def _settle_unlisted(
    client: Client, target: ListingTarget, progress: ListingProgress
) -> None:
    """Request the known emails that were not listed, in parts: after a reset this may be all mail.

    Emails that the server does not find are gone. Of those that it returns, some are gone too:
    those of `_gone_check`, and copies of listed emails. The others stay, because a server may leave
    out of its lists what it still has.
    """
    last = ""
    is_gone: Callable[[Email | BadEmail], bool] | None = None
    while unlisted := await trio.to_thread.run_sync(target.unlisted, last, _UNLISTED_AT_ONCE):
        found = await client.emails(unlisted)
        kept = await trio.to_thread.run_sync(target.without_copies, found.emails)
        bad = found.bad
        if (kept or bad) and is_gone is None:
            is_gone = await _gone_check(client, target, progress)
        if is_gone is not None:
            kept = [email for email in kept if not is_gone(email)]
            bad = [one for one in bad if not is_gone(one)]
        kept_ids = {email.id for email in kept}.union(one.id for one in bad)
        returned = [*(email.id for email in found.emails), *(one.id for one in found.bad)]
        dropped = [email_id for email_id in returned if email_id not in kept_ids]
        if dropped:
            _log.info("not listed any more: removed the emails %s", name_some(dropped))
        found = EmailsFound(kept, [*found.not_found, *dropped], bad)
        await trio.to_thread.run_sync(target.store_unlisted, found)
        last = unlisted[-1]


async def _gone_check(
    client: Client, target: ListingTarget, progress: ListingProgress
) -> Callable[[Email | BadEmail], bool]:
    """Return whether an email that the server has not listed, but not reported as gone, is gone.

    It is gone if a second list leaves it out too, the totals of both lists agree with their
    lengths, and no mailbox of the email counts more emails than are listed. If the server reports
    no totals, it must count the emails of these mailboxes.
    """
    second = await list_ids(client, trust_total=False)
    counts_total = progress.total is not None and second.total is not None
    agree = (
        progress.is_whole
        and second.is_whole
        and (not counts_total or (progress.total == progress.ids and second.agrees))
    )
    listed = await trio.to_thread.run_sync(target.listed_counts)
    mailboxes, _ = await client.mailboxes()
    counted = {mailbox.id: mailbox.total_emails for mailbox in mailboxes}

    def is_gone(email: Email | BadEmail) -> bool:
        if not agree or email.id in second.ids:
            return False
        totals = [(listed.get(id_, 0), counted.get(id_)) for id_ in email.mailbox_ids]
        if not counts_total and (not totals or any(total is None for _, total in totals)):
            return False
        return all(total is None or total <= known for known, total in totals)

    return is_gone
