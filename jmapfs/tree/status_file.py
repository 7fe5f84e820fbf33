"""`.jmapfs.json`: the account, its state and the connection to the server, as a file in the root.

It is always newer than every email. Borg does not cache the file with the newest ctime: if this
were the newest mail, Borg would read the mail again in every run. Its content changes only
with the state of the account, and when the server becomes reachable or unreachable. So a second
backup reads nothing.

Its time changes whenever its content changes. The seconds change with the state of the account,
because rsync compares only seconds. The nanoseconds are a digest of the content.
"""

import math
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from jmapfs.errors import printable
from jmapfs.index.rows import AccountState, Counts
from jmapfs.text import escaped_json

STATUS_FILE_NAME: Final = ".jmapfs.json"

SHOWN_BAD: Final = 100
"""How many bad emails the status names."""

_SHOWN_MAILBOXES: Final = 5
_NANOSECONDS: Final = 1_000_000_000
_FUTURE_SECONDS: Final = 1 << 26  # two years


class BadEmailStatus(msgspec.Struct, frozen=True):
    """An email that the account has, but that cannot be shown. `since` is a time as text."""

    id: str
    reason: str
    since: str


class MailboxShortfall(msgspec.Struct, frozen=True):
    """A mailbox, by its path in the tree: how many emails were found, and how many expected."""

    path: str
    found: int
    expected: int


class ShortfallStatus(msgspec.Struct, frozen=True):
    """The server counts `expected` emails, but only `found` emails could be listed.

    `mailboxes` are those that lack emails, as far as the server counts by mailbox.
    """

    since: str
    found: int
    expected: int
    mailboxes: tuple[MailboxShortfall, ...] = ()

    def __str__(self) -> str:
        """Return the shortfall as text."""
        text = f"the server counts {self.expected:,} mails, but only {self.found:,} can be listed"
        shown = [
            f"{printable(one.path, 80)}: {one.found:,} of {one.expected:,}"
            for one in self.mailboxes[:_SHOWN_MAILBOXES]
        ]
        if rest := len(self.mailboxes) - len(shown):
            shown.append(f"and {rest:,} more mailboxes")
        return f"{text} ({', '.join(shown)})" if shown else text


class Lacking(NamedTuple):
    """What a tree lacks although the account has it: bad emails, and those of a shortfall."""

    bad: tuple[BadEmailStatus, ...] = ()
    shortfall: ShortfallStatus | None = None

    def lines(self) -> list[str]:
        """Return one line of text for each kind."""
        lines = []
        if self.bad:
            mails = "1 mail" if len(self.bad) == 1 else f"{len(self.bad):,} mails"
            first = self.bad[0]
            lines.append(
                f"{mails} cannot be shown, such as email {printable(first.id, 80)}:"
                f" {printable(first.reason, 200)}"
            )
        if self.shortfall is not None:
            lines.append(str(self.shortfall))
        return lines


NOTHING: Final = Lacking()


@dataclass(frozen=True, slots=True)
class StatusFile:
    """The content of `.jmapfs.json` and its time (nanoseconds since 1970)."""

    content: bytes
    time_ns: int


@dataclass(frozen=True, slots=True)
class Reachability:
    """Whether the server is reachable; if not, since when (seconds since 1970) and why.

    `changed_at` is when the reason changed.
    """

    online: bool
    since: float = 0.0
    error: str | None = None
    changed_at: float = 0.0


ONLINE: Final = Reachability(online=True)


def make_status_file(
    state: AccountState,
    counts: Counts,
    lacking: Lacking = NOTHING,
    reachability: Reachability = ONLINE,
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
    time = max(state.synced_at, state.moved_at)
    if not reachability.online:
        document |= {"offline_since": time_text(reachability.since), "error": reachability.error}
        time = max(time, reachability.since, reachability.changed_at)
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
    if lacking.bad:
        document |= {"bad": lacking.bad[:SHOWN_BAD], "bad_count": len(lacking.bad)}
    if state.shortfall is not None:
        document["shortfall"] = lacking.shortfall
        time = max(time, state.shortfall.since)
    lines = msgspec.json.format(msgspec.json.encode(document), indent=2).decode().split("\n")
    # Users read this file on a terminal.
    content = "".join(f"{escaped_json(line)}\n" for line in lines).encode()
    seconds = math.ceil(time)
    if seconds <= counts.newest:
        # The newest email is dated in the future. The time must still change with the state.
        seconds = counts.newest + 1 + seconds % _FUTURE_SECONDS
    return StatusFile(content, seconds * _NANOSECONDS + zlib.crc32(content) % _NANOSECONDS)


def time_text(time: float) -> str:
    """Return a time in seconds since 1970 as text (ISO 8601, UTC)."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
