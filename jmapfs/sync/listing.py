"""Listing all emails of an account, page by page, each page durable before the next is stored.

The Email state is read before the first page. Whatever changes while the listing goes on is then
among the changes since that state (RFC 8620 §3.10: calls are not isolated from each other), so a
listing alone is never taken for the account: `changes` comes after it.

An interrupted listing goes on behind the last durable page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from jmapfs.errors import MethodError, ProtocolError, ServerError, lone_errors
from jmapfs.index.rows import ListingProgress
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.methods import EmailPage
from jmapfs.sync.conversion import email_record, mailbox_record

_log = logging.getLogger(__name__)

ListingReport = Callable[[int, int | None], None]
"""Called with how many emails are listed, and how many there are where the server said so."""

_RESTARTS: Final = 10


async def list_emails(client: Client, writer: IndexWriter, report: ListingReport) -> None:
    """List all emails into the index, from where an earlier listing stopped, if one did.

    At the end the index's state is the one from before the listing, and emails that were not
    named and are not found any more are gone from it.

    Raises:
        ServerError: the emails to go on from vanish again and again, or pages repeat.
        JmapfsError: what the client raises.
    """
    for _ in range(_RESTARTS):
        progress = await trio.to_thread.run_sync(writer.listing_progress)
        if progress is None:
            progress = await _begin(client, writer)
        try:
            await _list_pages(client, writer, progress, report)
        except MethodError as error:
            if error.kind != "anchorNotFound":
                raise
            _log.info("the email to list on from is gone: the listing begins again")
            await _begin(client, writer)
            continue
        await _end(client, writer)
        return
    raise ServerError(
        f"the account cannot be listed: {_RESTARTS} times the email to go on from was gone"
    )


async def _begin(client: Client, writer: IndexWriter) -> ListingProgress:
    progress = ListingProgress(email_state=await client.email_state())
    mailboxes, _ = await client.mailboxes()
    records = [mailbox_record(mailbox) for mailbox in mailboxes]

    def begin() -> None:
        with writer.transaction():
            # The ones that are gone stay until their emails are known to be elsewhere.
            writer.replace_mailboxes(records)
            writer.begin_listing(progress)
            # Until what comes after it has been followed, too.
            writer.set_state(replace(writer.state(), consistent=False))

    await trio.to_thread.run_sync(begin)
    return progress


async def _list_pages(
    client: Client, writer: IndexWriter, progress: ListingProgress, report: ListingReport
) -> None:
    """Fetch pages and store them, the next one on its way while one is stored."""
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
    passed: set[str] = set()
    async with send:
        while True:
            page = await client.query_page(anchor, limit)
            # Servers clamp the limit: a short page means nothing, only an empty one does.
            if not page.ids:
                return
            if page.ids[-1] in passed or anchor in page.ids:
                raise ProtocolError("the server answers Email/query with the same page again")
            anchor = page.ids[-1]
            passed.add(anchor)
            await send.send(page)


def _store(writer: IndexWriter, page: EmailPage, progress: ListingProgress) -> None:
    records = [email_record(email) for email in page.emails]
    with writer.transaction():
        writer.put_emails(records)
        writer.set_listing_progress(progress)


async def _end(client: Client, writer: IndexWriter) -> None:
    """Ask for what was not named: only an email that is not found is gone."""
    unlisted = await trio.to_thread.run_sync(writer.unlisted_emails)
    emails, not_found = await client.emails(unlisted) if unlisted else ([], [])
    records = [email_record(email) for email in emails]

    def end() -> None:
        with writer.transaction():
            progress = writer.listing_progress()
            assert progress is not None  # noqa: S101 - for the type checker
            writer.put_emails(records)
            writer.remove_emails(not_found)
            # The mailbox state goes with the mailboxes, which are asked for again after this.
            writer.set_state(
                replace(writer.state(), email_state=progress.email_state, mailbox_state="")
            )
            writer.end_listing()

    await trio.to_thread.run_sync(end)
