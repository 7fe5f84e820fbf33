"""A peer: mbsync, as many have their mail copied over IMAP into a Maildir.

`FSync no` where no other peer makes sure that each mail is on the disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.bench.surroundings import timed
from tests.cyrus import Account

# mbsync adds a field to each mail, by which it knows it again after an interruption.
_MARK = re.compile(rb"^X-TUID: .{12}\n", re.MULTILINE)

# Empty lines end sections, and what is global comes first.
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
    """Copy the whole account into Maildirs below `directory`; return how many seconds it took.

    With `synced`, each mail is on the disk before the next.
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
    """Yield what was copied, as it was but for its CRs, which mbsync takes out."""
    for status in ("cur", "new"):
        for path in directory.rglob(f"{status}/*"):
            yield _MARK.sub(b"", path.read_bytes(), count=1)
