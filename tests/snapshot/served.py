"""Snapshots of an account on a server in this process. Each is compared with the server."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jmapfs.account import AccountSource
from jmapfs.jmap.login import Login
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.from_account import account_opener
from jmapfs.snapshot.manifest import MISSING
from jmapfs.snapshot.missing import read_missing
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from tests.mails import random_mail, text_mail
from tests.server import Account, MailServer, running_server
from tests.snapshot.commands import RecordingReport, require_whole
from tests.sync.followed_account import CREDENTIALS

MAILS: Final = 12
LARGE_BYTES: Final = 3 << 20


@dataclass(frozen=True)
class ServedAccount:
    """An account on a server in this process, and the place for its snapshots."""

    server: MailServer
    source: AccountSource
    directory: Path
    dest_name: str = "dest"

    @property
    def dest(self) -> Path:
        return self.directory / self.dest_name

    async def snapshot(self, *, skip_bad: bool = False, max_gone: float = 50) -> SnapshotSummary:
        """Create a snapshot, and check that it has no wrong byte."""
        report = RecordingReport()
        cache = self.directory / "cache"
        async with account_opener(
            self.source, cache, report, allow_stale=False, max_gone=max_gone
        ) as opener:
            summary = await create_snapshot(
                opener,
                Repository(self.dest),
                max_gone=max_gone,
                report=report,
                skip_bad=skip_bad,
            )
        self.require_right(Path(summary.path), missing=summary.missing)
        return summary

    def require_right(self, path: Path, *, missing: int) -> None:
        """Check that each file has the bytes of an email, and that the others are missing."""
        require_whole(path)
        account = self.server.primary
        expected = sorted(_sha256(account, one.blob_id) for one in account.emails.values())
        found = [hashlib.sha256(file.read_bytes()).hexdigest() for file in path.rglob("*.eml")]
        assert set(found) <= set(expected)
        if missing:
            listed = {mail.id for mail in read_missing(path / MISSING)}
            assert len(listed) == missing
            expected = sorted(
                _sha256(account, one.blob_id)
                for one in account.emails.values()
                if one.id not in listed
            )
        assert sorted(found) == expected


def _sha256(account: Account, blob_id: str) -> str:
    return hashlib.sha256(account.blobs.read(blob_id) or b"").hexdigest()


@contextlib.asynccontextmanager
async def served_account(tmp_path: Path) -> AsyncIterator[ServedAccount]:
    """Serve an account with `MAILS` small mails and a large one."""
    account = Account()
    inbox = account.create_mailbox("Inbox", role="inbox")
    for number in range(MAILS):
        account.add_email(
            text_mail(number, padding=number),
            [inbox],
            received_at=f"2024-03-01T00:{number:02}:00Z",
            email_id=f"M{number}",
        )
    account.add_email(random_mail(99, LARGE_BYTES), [inbox], email_id="Mlarge")
    server = MailServer(account)
    async with running_server(server) as url:
        yield ServedAccount(
            server, AccountSource("alice", f"{url}/session", Login(CREDENTIALS)), tmp_path
        )
