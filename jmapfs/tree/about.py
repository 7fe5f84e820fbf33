"""`.jmapfs.json`: what the tree knows of itself, as a file in its root.

It is also the youngest file of the tree, on purpose: Borg never remembers the file with the
newest ctime, and would otherwise read the newest mail again in every run. Its content changes
only when the state of the account does, so that a second backup finds nothing new here either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from jmapfs.index import AccountState, Counts

ABOUT_NAME: Final = ".jmapfs.json"


@dataclass(frozen=True, slots=True)
class About:
    """The content of `.jmapfs.json`, and when it is from (seconds since 1970)."""

    content: bytes
    time: int


def about(state: AccountState, counts: Counts) -> About:
    """Describe one state of the account."""
    document = {
        "account": state.account_name,
        "account_id": state.account_id,
        "server": state.server,
        "state": state.email_state,
        "last_sync": datetime.fromtimestamp(state.synced_at, UTC).isoformat(timespec="seconds"),
        "emails": counts.emails,
        "mailboxes": counts.mailboxes,
    }
    content = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    return About(content, max(math.ceil(state.synced_at), counts.newest + 1))
