"""Emails that the account has, but that cannot be shown: they are requested again in each round.

An email is bad if the server sends it without an essential property, says nothing about it, or
lists it but does not find it.
"""

import logging
import random
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import trio

from jmapfs.errors import IN_OUTPUT
from jmapfs.index.rows import BadEmailRow
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.types import BadEmail
from jmapfs.sync.account_check import require_own_ids

_log = logging.getLogger(__name__)

NOT_FOUND: Final = "the server lists it, but does not find it"

# How many emails are named in the log at a time.
_LOGGED_AT_ONCE: Final = 100
# How many bad emails are requested again in one round.
_RETRIED_AT_ONCE: Final = 1000


def listed_but_not_found(email_ids: Iterable[str]) -> list[BadEmail]:
    """Return the bad emails with these ids: the server lists them, but does not find them."""
    return [BadEmail(id=email_id, reason=NOT_FOUND) for email_id in email_ids]


def not_found(rows: Iterable[BadEmailRow]) -> list[str]:
    """Return the ids that were listed, but not found."""
    return [row.id for row in rows if row.reason == NOT_FOUND]


def name_some(ids: Sequence[str]) -> str:
    """Return ids as text, for a line in the log: not all of them if there are many."""
    text = ", ".join(ids[:_LOGGED_AT_ONCE])
    rest = len(ids) - _LOGGED_AT_ONCE
    return text if rest <= 0 else f"{text} and {rest} more"


async def retry_bad_emails(client: Client, writer: IndexWriter, ids: Sequence[str]) -> bool:
    """Request bad emails again; return whether anything about them has changed.

    Raises ReusedIdsError if an id stands for another email than the one that is still shown. Other
    errors are those of the client.
    """
    found = await client.emails(random.sample(ids, min(len(ids), _RETRIED_AT_ONCE)))
    bad = [*found.bad, *listed_but_not_found(found.not_found)]

    def store() -> bool:
        known = {(row.id, row.reason) for row in writer.bad_emails()}
        news = [one for one in bad if (one.id, one.reason) not in known and not one.is_unanswered]
        if not found.emails and not news:
            return False
        with writer.transaction():
            require_own_ids(client, writer, found.emails)
            writer.put_emails(found.emails)
            writer.put_bad_emails(news)
            writer.note_change()
        return True

    return await trio.to_thread.run_sync(store)


# The following functions run in a worker thread.


def forget_not_found(writer: IndexWriter, listed: Collection[str]) -> bool:
    """Forget the ids that were not found, and are not listed any more; return whether any were."""
    gone = [email_id for email_id in not_found(writer.bad_emails()) if email_id not in listed]
    if gone:
        with writer.transaction():
            writer.bad.remove(gone)
            writer.note_change()
    return bool(gone)


def log_new_bad_emails(writer: IndexWriter, before: Sequence[BadEmailRow]) -> None:
    """Log the bad emails that were not bad before; note it if the bad emails have changed."""
    bad = writer.bad_emails()
    known = {row.id for row in before}
    new = [row for row in bad if row.id not in known]
    for row in new[:_LOGGED_AT_ONCE]:
        _log.warning("email %s cannot be shown: %s", row.id, row.reason, extra=IN_OUTPUT)
    if len(new) > _LOGGED_AT_ONCE:
        rest = len(new) - _LOGGED_AT_ONCE
        _log.warning("%d more emails cannot be shown", rest, extra=IN_OUTPUT)
    if bad != before:
        with writer.transaction():
            writer.note_change()
