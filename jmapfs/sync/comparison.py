"""Compares the numbers of emails in an index with those that the server counts.

The comparison finds what a listing or the changes have lost. It takes one request. It is valid only
if the server still has the Email state of the index. Bad emails count as known.

If the index lacks emails, the ids are listed, and the emails that are not known are fetched. If the
numbers still differ, the account is listed again and compared, but only once a day for the same
difference. If the server then counts more emails than it lists, the index has a *shortfall*.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from jmapfs.errors import IN_OUTPUT, MethodError, ServerError
from jmapfs.index.rows import Shortfall
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.emails import ServerCounts
from jmapfs.suspension import seconds_since
from jmapfs.sync.bad_emails import forget_not_found, listed_but_not_found, not_found
from jmapfs.sync.id_listing import list_ids

_log = logging.getLogger(__name__)

_LISTING_INTERVAL: Final = 24 * 3600.0
# An account that changes ten times a second is compared in most cases after a few attempts.
_MAX_ATTEMPTS: Final = 10
_NOT_COMPARED: Final = (
    "the numbers of emails cannot be compared, so nothing shows whether mail is lacking"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The numbers of emails in the index and at the server.

    emails, bad: how many emails the index has, and how many are bad.
    not_found: how many of these are bad because the server lists them, but does not find them.
    total: how many emails the server counts, or None.
    lacking, excess: the mailboxes for which the server counts more, or fewer emails: the mailbox
        id, the number in the index, and the number at the server.
    is_counted: whether the server counts all emails, or those of all mailboxes.
    """

    emails: int
    bad: int
    total: int | None
    lacking: tuple[tuple[str, int, int], ...]
    excess: tuple[tuple[str, int, int], ...]
    not_found: int = 0
    is_counted: bool = True

    @property
    def known(self) -> int:
        """How many emails are known."""
        return self.emails + self.bad

    @property
    def expected(self) -> int:
        """How many emails the account has according to the server.

        Without a total, this may be too many: a lacking email counts once for each of its mailboxes
        that lack emails, because the server does not say which emails these are.
        """
        if self.total is not None and self.total > self.known:
            return self.total
        return self.known + sum(theirs - ours for _, ours, theirs in self.lacking)

    @property
    def differs(self) -> bool:
        """Whether the account should be listed again."""
        surplus = self.total is not None and self.known > self.total
        return self.expected > self.known or surplus or bool(self.excess)

    def difference(self) -> str:
        """Return by how many emails the numbers differ; new mail does not change this text."""
        parts = [
            f"{mailbox_id}:{theirs - ours:+}"
            for mailbox_id, ours, theirs in (*self.lacking, *self.excess)
        ]
        if self.total is not None:
            parts.insert(0, f"{self.total - self.known:+}")
        return " ".join(parts)

    def describe(self) -> str:
        """Return the numbers, for messages."""
        parts = [
            f"mailbox {mailbox_id}: {known:,} of {theirs:,}"
            for mailbox_id, known, theirs in (*self.lacking, *self.excess)
        ]
        if self.total is not None:
            parts.insert(0, f"{self.known:,} of {self.total:,} emails")
        return "; ".join(parts)


async def compare_and_heal(
    client: Client, writer: IndexWriter, bring_up_to_date: Callable[[str], Awaitable[bool]]
) -> bool:
    """Compare the numbers; if they differ, list again. Return whether the index has changed.

    `bring_up_to_date` is called with the reason for a listing, or an empty text for none. Raises
    its errors and those of the client.
    """
    compared = await _compare_current(client, writer, bring_up_to_date)
    changed, listed_at = False, 0.0
    if compared is not None and (compared.known < compared.expected or compared.not_found):
        changed = await _compare_ids(client, writer, compared)
        if changed:
            # An email may be in a mailbox that the server has not described.
            await bring_up_to_date("")
            compared = await _compare_current(client, writer, bring_up_to_date)
    if compared is not None and not await trio.to_thread.run_sync(_is_settled, writer, compared):
        listed_at = time.time()
        changed |= await bring_up_to_date(f"the numbers differ: {compared.describe()}")
        compared = await _compare_current(client, writer, bring_up_to_date)
    if compared is not None:
        changed |= await trio.to_thread.run_sync(_store, writer, compared, listed_at)
        if not compared.is_counted:
            _log.warning("%s: the server does not count them", _NOT_COMPARED)
    return changed


async def _compare_current(
    client: Client, writer: IndexWriter, bring_up_to_date: Callable[[str], Awaitable[bool]]
) -> Comparison | None:
    """Compare the numbers. Return None if the account changes each time, or has no numbers."""
    for attempt in range(_MAX_ATTEMPTS):
        if attempt:
            await bring_up_to_date("")
        try:
            counts = await client.counts()
        except ServerError as error:
            _log.warning("%s: %s", _NOT_COMPARED, error)
            return None
        compared = await trio.to_thread.run_sync(compare, writer, counts)
        if compared is not None:
            return compared
    _log.warning("%s: the account changes all the time", _NOT_COMPARED)
    return None


async def _compare_ids(client: Client, writer: IndexWriter, compared: Comparison) -> bool:
    """Store the emails that are listed, but not known; return whether anything has changed.

    Ids that were listed, but not found, are forgotten if they are not listed any more.

    Without a total, the changes since the state of the session are requested too. On James this
    is the first Email state of each account. James counts an email that is flagged as deleted, but
    does not list it.
    """
    total = compared.total
    # If only mailboxes lack emails, the total may be wrong, and may have ended the last list early.
    listing = await list_ids(client, trust_total=total is not None and total > compared.known)
    listed = listing.ids.keys()
    removed = False
    if listing.is_whole:
        removed = await trio.to_thread.run_sync(forget_not_found, writer, listed)
    ids = set(listed)
    if total is None:
        try:
            ids |= await client.changed_ids(client.session.state)
        except MethodError as error:
            _log.debug("all changes are not known: %s", error)
    unknown = await trio.to_thread.run_sync(writer.unknown_emails, ids)
    if not unknown:
        return removed
    found = await client.emails(unknown)
    bad = [*found.bad, *listed_but_not_found(id_ for id_ in found.not_found if id_ in listed)]

    def put() -> None:
        with writer.transaction():
            writer.put_emails(found.emails)
            writer.put_bad_emails(bad)
            writer.note_change()

    if found.emails or bad:
        await trio.to_thread.run_sync(put)
        _log.info("the index lacked %d emails", len(found.emails) + len(bad))
    return removed or bool(found.emails or bad)


# The following functions run in a worker thread.


def compare(writer: IndexWriter, counts: ServerCounts) -> Comparison | None:
    """Compare the index with the counts; None if the server has another state by now."""
    if writer.state().email_state != counts.email_state:
        return None
    known = writer.mailbox_counts()
    rows = writer.bad_emails()
    bad = Counter(mailbox_id for row in rows for mailbox_id in row.mailbox_ids)
    homeless = writer.count_homeless() + sum(not row.mailbox_ids for row in rows)
    lacking, excess = [], []
    for mailbox_id, theirs in sorted(counts.mailboxes.items()):
        ours = known.get(mailbox_id, 0)
        if theirs is None:
            continue
        with_bad = ours + bad.get(mailbox_id, 0)
        # An email without mailboxes may be in any mailbox: its mailbox ids may be odd.
        if theirs > with_bad + homeless:
            lacking.append((mailbox_id, with_bad, theirs))
        elif theirs < ours:
            excess.append((mailbox_id, ours, theirs))
    return Comparison(
        emails=writer.counts().emails,
        bad=len(rows),
        total=counts.total,
        lacking=tuple(lacking),
        excess=tuple(excess),
        not_found=len(not_found(rows)),
        is_counted=counts.total is not None or None not in counts.mailboxes.values(),
    )


def _is_settled(writer: IndexWriter, compared: Comparison) -> bool:
    """Return whether there is no difference, or one that has led to a new listing already."""
    state = writer.state()
    return not compared.differs or (
        state.listed_again_for == compared.difference()
        and seconds_since(state.listed_again_at) < _LISTING_INTERVAL
    )


def _store(writer: IndexWriter, compared: Comparison, listed_at: float) -> bool:
    """Store what is still missing; return whether that has changed."""
    with writer.transaction():
        state, now = writer.state(), time.time()
        old, shortfall = state.shortfall, None
        if compared.expected > compared.known:
            shortfall = Shortfall(
                since=old.since if old else now,
                found=compared.known,
                expected=compared.expected,
                mailboxes=compared.lacking,
            )
        if shortfall is not None and _lacks(shortfall) != _lacks(old):
            _log.warning(
                "the server counts more emails than it lists: %s",
                compared.describe(),
                extra=IN_OUTPUT,
            )
        elif shortfall is None and old is not None:
            _log.info("the server lists all emails again")
        if listed_at:
            state = replace(
                state,
                listed_again_at=listed_at,
                listed_again_for=compared.difference() if compared.differs else "",
            )
        synced_at = state.synced_at if shortfall == old else now
        compared_at = now if compared.is_counted else state.compared_at
        writer.set_state(
            replace(state, shortfall=shortfall, compared_at=compared_at, synced_at=synced_at)
        )
    return shortfall != old


def _lacks(shortfall: Shortfall | None) -> tuple[int, dict[str, int]] | None:
    """Return how many emails are missing in all, and in each mailbox."""
    if shortfall is None:
        return None
    lacking = {mailbox_id: theirs - known for mailbox_id, known, theirs in shortfall.mailboxes}
    return shortfall.expected - shortfall.found, lacking
