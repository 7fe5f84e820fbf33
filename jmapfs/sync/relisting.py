"""Lists an account again whose emails are in the index, compares, and applies the result.

    stage all pages ── compare with the tree ──┬── apply: one transaction
                                               └── keep the old tree: it is *stale*

An account is listed again if the server cannot report the changes, or if an email id stands for
another email than before. In the second case the server was reset or restored: the emails that
follow belong to a new epoch (`blob_keys`). An emptied or a wrong database looks the same as an
account from which the user has deleted everything. So the tree is kept if most of it is gone. It
follows the account again when the mail is back, or when the user accepts the deletions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import trio

from jmapfs.blob_keys import new_epoch
from jmapfs.errors import IN_OUTPUT, TooMuchGoneError
from jmapfs.index.rows import ListingProgress, StaleTree
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.emails import EmailsFound
from jmapfs.jmap.types import Mailbox
from jmapfs.sync.account_check import REUSED_IDS
from jmapfs.sync.listing import ListingReport, ListingTarget, list_emails

_log = logging.getLogger(__name__)

MAX_GONE: Final = 50.0
"""How much of the tree's mail may be gone after a new listing, in percent, as for a snapshot."""


def too_much_gone(stale: StaleTree) -> TooMuchGoneError:
    """Return the error that says why the tree is stale, and what to do."""
    return TooMuchGoneError(
        f"{describe_stale(stale)}: the last known mail is kept. If the mail is really gone:"
        " jmapfs sync --accept-deletions MOUNTPOINT or, if the account is not mounted,"
        " jmapfs snapshot --max-gone 100"
    )


def describe_stale(stale: StaleTree) -> str:
    """Return how much mail is gone, and why the account was listed again."""
    return f"{stale.gone:,} of {stale.total:,} mails are gone from the server ({stale.reason})"


class StagedListing(ListingTarget):
    """Stages the emails of a new listing."""

    def __init__(self, writer: IndexWriter, reason: str, *, reset: bool, ids_prove: bool) -> None:
        super().__init__(writer)
        self._reason = reason
        self._reset = reset
        # Blob ids with a SHA-1 prove the content, so a reused email id does no harm.
        self._ids_prove = ids_prove

    def progress(self) -> ListingProgress | None:
        """Return how far an unfinished listing has come, or None."""
        progress = self._writer.listing_progress()
        # Version 1 did not stage listings.
        return progress if progress is not None and progress.staged else None

    def begin(self, progress: ListingProgress, ids: Iterable[str]) -> ListingProgress:
        """Begin a listing: store the listed ids. Return the progress that is stored."""
        progress = replace(progress, staged=True, reset=self._reset, reason=self._reason)
        with self._writer.transaction():
            self._writer.staged.begin()
            self._writer.listed.begin(ids)
            self._writer.set_listing_progress(progress)
        return progress

    def put(self, found: EmailsFound) -> None:
        """Store what the server has answered; this is a part of a transaction."""
        self._writer.staged.add(found.emails, reuse_proves_reset=not self._ids_prove)
        self._writer.staged.keep(one.id for one in found.bad if one.is_unanswered)

    def unlisted(self, after: str, count: int) -> list[str]:
        """Return the ids of `count` known emails that were not listed, in order of ids."""
        return self._writer.staged.unlisted(after, count)

    def finish(self, progress: ListingProgress) -> None:
        """Store that everything is listed."""
        with self._writer.transaction():
            self._writer.set_listing_progress(replace(progress, finished=True))

    def apply(self, mailboxes: Sequence[Mailbox], max_gone: float) -> StaleTree | None:
        """Apply the listing in one transaction.

        If too much is gone, nothing is applied: the tree is marked as stale, and the reason is
        returned.
        """
        writer = self._writer
        with writer.transaction():
            progress, state = writer.listing_progress(), writer.state()
            if progress is None:
                return None
            reset = not self._ids_prove and (progress.reset or writer.staged.has_reused_ids())
            gone, total = writer.staged.count_gone(reset=reset)
            if 100 * gone > max_gone * total:
                now = time.time()
                stale = StaleTree(
                    since=now if state.stale is None else state.stale.since,
                    checked_at=now,
                    gone=gone,
                    total=total,
                    reset=reset,
                    email_state=progress.email_state,
                    reason=REUSED_IDS if reset else progress.reason,
                )
                writer.set_state(replace(state, stale=stale))
                if state.stale is None:
                    _log.error("keeping the old tree: %s", describe_stale(stale), extra=IN_OUTPUT)
                return stale
            if gone == total and total and not self._ids_prove:
                # Nothing shows that the server's blob ids still have their meaning.
                reset = True
            if reset:
                _log.warning("%s: content is downloaded again", REUSED_IDS)
            if gone:
                _log.info("%d of %d mails are gone", gone, total)
            writer.replace_mailboxes(mailboxes)
            writer.staged.apply(reset=reset)
            writer.listed.end()
            writer.end_listing()
            # The mailbox state is empty, so the mailboxes are requested again with the changes. The
            # index is consistent when the changes since the beginning of the listing are stored.
            writer.set_state(
                replace(
                    state,
                    email_state=progress.email_state,
                    mailbox_state="",
                    consistent=False,
                    epoch=new_epoch() if reset else state.epoch,
                    stale=None,
                )
            )
            return None


async def list_again(
    client: Client,
    writer: IndexWriter,
    report: ListingReport,
    *,
    reason: str,
    reset: bool,
    max_gone: float,
) -> None:
    """List a complete index again, and apply the result if not too much is gone.

    An interrupted listing is resumed. A finished listing that was not applied is compared again.
    Raises TooMuchGoneError if more than `max_gone` percent of the tree's mail is gone. The tree is
    stale then. Other errors are those of `list_emails`.
    """
    staged = StagedListing(writer, reason, reset=reset, ids_prove=client.blob_ids_are_sha1)
    progress = await trio.to_thread.run_sync(staged.progress)
    if progress is None or not progress.finished:
        await list_emails(client, staged, report)
    mailboxes, _ = await client.mailboxes()
    stale = await trio.to_thread.run_sync(staged.apply, mailboxes, max_gone)
    if stale is not None:
        raise too_much_gone(stale)


def discard_listing(writer: IndexWriter) -> None:
    """Forget a listing, so that the next one begins anew."""
    with writer.transaction():
        writer.end_listing()
