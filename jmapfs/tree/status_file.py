"""`.jmapfs.json`: the account, its state and the connection to the server, as a file in the root.

Its time is always the newest in the tree. Borg does not cache the file with the newest ctime: if
this were the newest mail, Borg would read the mail again in every run. Its content changes only
with the state of the account, and when the server becomes reachable or unreachable. So a second
backup reads nothing.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from jmapfs.index.rows import AccountState, Counts

STATUS_FILE_NAME: Final = ".jmapfs.json"


@dataclass(frozen=True, slots=True)
class StatusFile:
    """The content of `.jmapfs.json` and its time (seconds since 1970)."""

    content: bytes
    time: int


@dataclass(frozen=True, slots=True)
class Reachability:
    """Whether the server is reachable; if not, since when (seconds since 1970) and why."""

    online: bool
    since: float = 0.0
    error: str | None = None


ONLINE: Final = Reachability(online=True)


def make_status_file(
    state: AccountState, counts: Counts, reachability: Reachability = ONLINE
) -> StatusFile:
    """Return the status file for one state of the account."""
    document: dict[str, object] = {
        "account": state.account_name,
        "account_id": state.account_id,
        "server": state.server,
        "state": state.email_state,
        "last_sync": time_text(state.synced_at),
        "emails": counts.emails,
        "mailboxes": counts.mailboxes,
        "online": reachability.online,
    }
    time = state.synced_at
    if not reachability.online:
        document |= {"offline_since": time_text(reachability.since), "error": reachability.error}
        time = max(time, reachability.since)
    if state.stale is not None:
        stale = state.stale
        document["stale"] = {
            "since": time_text(stale.since),
            "gone": stale.gone,
            "total": stale.total,
            "reset": stale.reset,
            "reason": stale.reason,
        }
        time = max(time, stale.checked_at)
    content = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    return StatusFile(content, max(math.ceil(time), counts.newest + 1))


def time_text(time: float) -> str:
    """Return a time in seconds since 1970 as text (ISO 8601, UTC)."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
