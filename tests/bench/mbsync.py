"""A peer: mbsync, which copies mail over IMAP into a Maildir.

The default is `FSync no`, because the other peers do not sync each mail either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.bench.harness import timed
from tests.cyrus import Account

# mbsync adds a field to each mail to recognize it after an interruption.
_MARK = re.compile(rb"^X-TUID: .{12}\n", re.MULTILINE)

# Empty lines end sections; global options come first.
_CONFIGURATION = """\
FSync {fsync}

IMAPAccount cyrus
Host 127.0.0.1
Port {account.imap_port}
User {account.name}
Pass "{account.password}"
SSLType None
AuthMechs LOGIN PLAIN

IMAPStore far
Account cyrus

MaildirStore near
Path {directory}/mail/
Inbox {directory}/mail/INBOX
SubFolders Verbatim

Channel all
SyncState {directory}/state/
Far :far:
Near :near:
Patterns *
Sync Pull
Create Near
"""


def copy(account: Account, directory: Path, *, synced: bool = False) -> float:
    """Copy the whole account into Maildirs below `directory`; return the duration in seconds.

    With `synced`, each mail is synced before the next one.
    """
    for name in ("mail", "state"):
        (directory / name).mkdir(parents=True)
    configuration = directory / "mbsyncrc"
    fsync = "yes" if synced else "no"
    configuration.write_text(
        _CONFIGURATION.format(account=account, directory=directory, fsync=fsync)
    )
    return timed("mbsync", "-c", configuration, "-a")


def mails(directory: Path) -> Iterator[bytes]:
    """Yield the copied mails; mbsync removes their CRs."""
    for status in ("cur", "new"):
        for path in directory.rglob(f"{status}/*"):
            yield _MARK.sub(b"", path.read_bytes(), count=1)
