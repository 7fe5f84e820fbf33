"""Lists all emails of an account, page by page. Each page is durable before the next is stored.

The Email state is read before the first page. Changes during the listing are therefore among the
changes since that state (RFC 8620 §3.10: calls are not isolated from each other). After each
listing, `Synchronizer` stores these changes.

An interrupted listing resumes after the last durable page. A `ListingTarget` decides where the
emails are stored: a first listing goes straight into the index, a later one is staged
(`sync.relisting`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

import trio

from jmapfs.errors import MethodError, ProtocolError, ServerError, lone_errors
from jmapfs.index.rows import ListingProgress
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client, EmailPage
from jmapfs.jmap.types import Email

_log = logging.getLogger(__name__)

ListingReport = Callable[[int, int | None], None]
"""Called with the number of emails listed so far, and the total if the server reports it."""

_MAX_RESTARTS: Final = 10
_UNLISTED_AT_ONCE: Final = 1000


class ReusedIdsError(Exception):
    """An email id stands for another email than before: the server was reset or restored."""


class ListingTarget(Protocol):
    """Where the listed emails are stored. The methods run in a worker thread."""

    def progress(self) -> ListingProgress | None:
        """Return how far an unfinished listing has come, or None."""

    def begin(self, email_state: str) -> ListingProgress:
        """Begin a listing at an Email state."""

    def store(self, emails: Sequence[Email], progress: ListingProgress) -> None:
        """Store the emails of a page with the progress, in one transaction."""

    def unlisted(self, after: str, count: int) -> list[str]:
        """Return the ids of `count` emails that were not listed, in the order of their ids."""

    def store_unlisted(self, emails: Sequence[Email], not_found: Sequence[str]) -> None:
        """Store what the server answers about emails that were not listed."""

    def finish(self, progress: ListingProgress) -> None:
        """Store that everything is listed."""


class FirstListing:
    """Stores the emails in the index, which is not shown until the listing is complete.

    If an id stands for another email than at the beginning of an interrupted listing, storing it
    raises ReusedIdsError, unless blob ids prove the content (`ids_prove`).
    """

    def __init__(self, writer: IndexWriter, *, ids_prove: bool) -> None:
        self._writer = writer
        self._ids_prove = ids_prove

    def progress(self) -> ListingProgress | None:
        """Return how far an unfinished listing has come, or None."""
        return self._writer.listing_progress()

    def begin(self, email_state: str) -> ListingProgress:
        """Begin a listing at an Email state."""
        progress = ListingProgress(email_state)
        with self._writer.transaction():
            self._writer.mark_unlisted()
            self._writer.set_listing_progress(progress)
            # The index is consistent when the changes since `email_state` are stored.
            self._writer.set_state(replace(self._writer.state(), consistent=False))
        return progress

    def store(self, emails: Sequence[Email], progress: ListingProgress) -> None:
        """Store the emails of a page with the progress, in one transaction."""
        with self._writer.transaction():
            self._require_own_ids(emails)
            self._writer.put_emails(emails)
            self._writer.set_listing_progress(progress)

    def unlisted(self, after: str, count: int) -> list[str]:
        """Return the ids of `count` emails that were not listed, in the order of their ids."""
        return self._writer.unlisted_emails(after, count)

    def store_unlisted(self, emails: Sequence[Email], not_found: Sequence[str]) -> None:
        """Store what the server answers about emails that were not listed."""
        with self._writer.transaction():
            self._require_own_ids(emails)
            self._writer.put_emails(emails)
            self._writer.remove_emails(not_found)

    def finish(self, progress: ListingProgress) -> None:
        """Store that everything is listed."""
        with self._writer.transaction():
            # The mailbox state is empty, so the mailboxes are requested after the listing.
            state = replace(
                self._writer.state(), email_state=progress.email_state, mailbox_state=""
            )
            self._writer.set_state(state)
            self._writer.end_listing()

    def _require_own_ids(self, emails: Sequence[Email]) -> None:
        if not self._ids_prove and self._writer.reused_ids(emails):
            raise ReusedIdsError


async def list_emails(client: Client, target: ListingTarget, report: ListingReport) -> None:
    """List all emails into the target; an interrupted listing is resumed.

    Emails that were not listed are requested by id: only those that the server does not find are
    gone. Raises ServerError if the email to resume from disappears again and again, or pages
    repeat; other errors are those of the client.
    """
    for _ in range(_MAX_RESTARTS):
        progress = await trio.to_thread.run_sync(target.progress)
        if progress is None:
            progress = await _begin(client, target)
        try:
            await _list_pages(client, target, progress, report)
        except MethodError as error:
            if error.kind != "anchorNotFound":
                raise
            _log.info("the email to resume the listing from is gone: listing from the beginning")
            await _begin(client, target)
            continue
        await _get_unlisted(client, target)
        await trio.to_thread.run_sync(target.finish, progress)
        return
    raise ServerError(
        f"the account cannot be listed: the email to resume from was gone {_MAX_RESTARTS} times"
    )


async def _begin(client: Client, target: ListingTarget) -> ListingProgress:
    return await trio.to_thread.run_sync(target.begin, await client.email_state())


async def _list_pages(
    client: Client, target: ListingTarget, progress: ListingProgress, report: ListingReport
) -> None:
    """Fetch and store pages. While a page is stored, the next page is fetched."""
    with lone_errors():
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[EmailPage](1)
            nursery.start_soon(_fetch_pages, client, progress.anchor, send)
            total: int | None = None
            report(progress.listed, total)
            async with receive:
                async for page in receive:
                    total = page.total if page.total is not None else total
                    progress = replace(
                        progress, anchor=page.ids[-1], listed=progress.listed + len(page.ids)
                    )
                    await trio.to_thread.run_sync(target.store, page.emails, progress)
                    report(progress.listed, total)


async def _fetch_pages(
    client: Client, anchor: str | None, send: trio.MemorySendChannel[EmailPage]
) -> None:
    limit = client.session.limits.max_objects_in_get
    anchors: set[str] = set()
    async with send:
        while True:
            page = await client.query_page(anchor, limit)
            # Servers may lower the limit: a short page may not be the last. An empty page is the
            # end.
            if not page.ids:
                return
            if page.ids[-1] in anchors or anchor in page.ids:
                raise ProtocolError("the server answers Email/query with the same page again")
            anchor = page.ids[-1]
            anchors.add(anchor)
            await send.send(page)


async def _get_unlisted(client: Client, target: ListingTarget) -> None:
    """Request the emails that were not listed, in parts: after a reset this may be all mail."""
    last = ""
    while unlisted := await trio.to_thread.run_sync(target.unlisted, last, _UNLISTED_AT_ONCE):
        found = await client.emails(unlisted)
        await trio.to_thread.run_sync(target.store_unlisted, found.emails, found.not_found)
        last = unlisted[-1]
