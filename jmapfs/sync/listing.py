"""Lists all emails of an account, page by page. Each page is durable before the next is stored.

The Email state is read before the first page. Changes during the listing are therefore among the
changes since that state (RFC 8620 §3.10: calls are not isolated from each other). After each
listing, `Synchronizer` stores these changes.

An interrupted listing resumes after the last durable page.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from jmapfs.errors import MethodError, ProtocolError, ServerError, lone_errors
from jmapfs.index.rows import ListingProgress
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client, EmailPage

_log = logging.getLogger(__name__)

ListingReport = Callable[[int, int | None], None]
"""Called with the number of emails listed so far, and the total if the server reports it."""

_MAX_RESTARTS: Final = 10


async def list_emails(client: Client, writer: IndexWriter, report: ListingReport) -> None:
    """List all emails into the index; an interrupted listing is resumed.

    Afterwards the index has the state that the account had before the listing. Emails that were not
    listed are removed if the server no longer has them. Raises ServerError if the email to resume
    from disappears again and again, or pages repeat; other errors are those of the client.
    """
    for _ in range(_MAX_RESTARTS):
        progress = await trio.to_thread.run_sync(writer.listing_progress)
        if progress is None:
            progress = await _begin(client, writer)
        try:
            await _list_pages(client, writer, progress, report)
        except MethodError as error:
            if error.kind != "anchorNotFound":
                raise
            _log.info("the email to resume the listing from is gone: listing from the beginning")
            await _begin(client, writer)
            continue
        await _end(client, writer, progress.email_state)
        return
    raise ServerError(
        f"the account cannot be listed: the email to resume from was gone {_MAX_RESTARTS} times"
    )


async def _begin(client: Client, writer: IndexWriter) -> ListingProgress:
    progress = ListingProgress(email_state=await client.email_state())
    mailboxes, _ = await client.mailboxes()

    def begin() -> None:
        with writer.transaction():
            # Mailboxes that are gone stay until their emails are known to be elsewhere.
            writer.replace_mailboxes(mailboxes)
            writer.begin_listing(progress)
            # The index is consistent again when the changes since `email_state` are stored.
            writer.set_state(replace(writer.state(), consistent=False))

    await trio.to_thread.run_sync(begin)
    return progress


async def _list_pages(
    client: Client, writer: IndexWriter, progress: ListingProgress, report: ListingReport
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
                    await trio.to_thread.run_sync(_store, writer, page, progress)
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


def _store(writer: IndexWriter, page: EmailPage, progress: ListingProgress) -> None:
    with writer.transaction():
        writer.put_emails(page.emails)
        writer.set_listing_progress(progress)


async def _end(client: Client, writer: IndexWriter, email_state: str) -> None:
    """Get the emails that were not listed. Only emails that the server does not find are gone."""
    unlisted = await trio.to_thread.run_sync(writer.unlisted_emails)
    emails, not_found = await client.emails(unlisted) if unlisted else ([], [])

    def end() -> None:
        with writer.transaction():
            writer.put_emails(emails)
            writer.remove_emails(not_found)
            # The mailbox state is empty, so the mailboxes are requested again after the listing.
            writer.set_state(replace(writer.state(), email_state=email_state, mailbox_state=""))
            writer.end_listing()

    await trio.to_thread.run_sync(end)
