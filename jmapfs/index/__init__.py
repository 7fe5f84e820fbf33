"""What is known of an account, in SQLite: mailboxes, emails, membership, keywords, states.

One process writes (see `jmapfs.lock`), any number read. The index is a copy of what the server
has: it can be deleted at any time and costs a new listing.
"""

from jmapfs.index.connection import index_errors
from jmapfs.index.database import IndexDatabase
from jmapfs.index.journal import JournalEntry, JournalPart
from jmapfs.index.mails import ListedBlob, MailPage, MailRow
from jmapfs.index.order import PlacedFile
from jmapfs.index.reader import IndexReader
from jmapfs.index.records import (
    AccountState,
    Counts,
    EmailRecord,
    FileRecord,
    Listing,
    ListingProgress,
    MailboxRecord,
    MailboxRow,
)
from jmapfs.index.writer import IndexWriter

__all__ = [
    "AccountState",
    "Counts",
    "EmailRecord",
    "FileRecord",
    "IndexDatabase",
    "IndexReader",
    "IndexWriter",
    "JournalEntry",
    "JournalPart",
    "ListedBlob",
    "Listing",
    "ListingProgress",
    "MailPage",
    "MailRow",
    "MailboxRecord",
    "MailboxRow",
    "PlacedFile",
    "index_errors",
]
