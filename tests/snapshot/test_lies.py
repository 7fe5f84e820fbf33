"""Snapshots of a server that sends content that is not the mail: no wrong byte gets in."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from jmapfs.account import AccountSource
from jmapfs.errors import IncompleteError, TooMuchGoneError
from jmapfs.snapshot.create import FailedDownloadsError, create_snapshot
from jmapfs.snapshot.from_account import account_opener
from jmapfs.snapshot.manifest import MISSING
from jmapfs.snapshot.missing import read_missing
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from tests.mails import random_mail, text_mail
from tests.server import Account, MailServer, running_server
from tests.server.lies import LieRoute
from tests.snapshot.commands import RecordingReport, dates, require_whole
from tests.sync.followed_account import CREDENTIALS

LIES: Final = ("html", "empty", "short", "long", "other-mail")
MAILS: Final = 12
LARGE_BYTES: Final = 3 << 20


@dataclass(frozen=True)
class Lying:
    """A server that will lie, and the place for snapshots of its account."""

    server: MailServer
    source: AccountSource
    directory: Path

    @property
    def dest(self) -> Path:
        return self.directory / "dest"

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


@pytest.fixture
async def lying(tmp_path: Path) -> AsyncIterator[Lying]:
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
        yield Lying(server, AccountSource("alice", f"{url}/session", CREDENTIALS), tmp_path)


@dataclass(frozen=True)
class Cell:
    """Where a server lies, and whether it has another route on which it does not."""

    routes: tuple[LieRoute, ...]
    blob_get: bool
    honest_route: bool


CELLS: Final = {
    "download, no Blob/get": Cell(("download",), blob_get=False, honest_route=False),
    "download": Cell(("download",), blob_get=True, honest_route=True),
    "Blob/get": Cell(("blob-get",), blob_get=True, honest_route=True),
    "both": Cell(("download", "blob-get"), blob_get=True, honest_route=False),
}


@pytest.mark.parametrize("sha1", [False, True], ids=["plain", "SHA-1"])
@pytest.mark.parametrize("count", [1, -1], ids=["once", "always"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("which", ["small", "large"])
async def test_no_wrong_byte_gets_into_a_snapshot(
    lying: Lying, which: str, lie: Any, cell: str, count: int, *, sha1: bool
) -> None:
    server, account = lying.server, lying.server.primary
    quirks = server.quirks
    quirks.sha1_blob_ids = sha1
    server.apply_blob_ids()
    quirks.blob_get = CELLS[cell].blob_get
    bad = ["M3", "M7"] if which == "small" else ["Mlarge"]
    quirks.lie_blob_ids = [account.emails[one].blob_id for one in bad]
    quirks.lie_routes = list(CELLS[cell].routes)
    quirks.lie_count = count
    quirks.lie = lie
    if count == 1 or CELLS[cell].honest_route:
        summary = await lying.snapshot()
        assert summary.missing == 0
        return
    with pytest.raises(FailedDownloadsError) as raised:
        await lying.snapshot()
    assert raised.value.exit_code == IncompleteError.exit_code
    assert dates(lying.dest) == []
    assert {mail.id for mail in read_missing(raised.value.missing.path)} == set(bad)
    assert (await lying.snapshot(skip_bad=True)).missing == len(bad)
    quirks.lie = None
    summary = await lying.snapshot()
    assert (summary.missing, summary.fetched) == (0, len(bad))


@pytest.mark.parametrize("lie", LIES)
async def test_the_reason_is_named(lying: Lying, lie: Any) -> None:
    quirks = lying.server.quirks
    quirks.lie, quirks.blob_get = lie, False
    quirks.lie_blob_ids = [lying.server.primary.emails["M3"].blob_id]
    with pytest.raises(FailedDownloadsError) as raised:
        await lying.snapshot()
    [mail] = raised.value.missing.first
    size = len(text_mail(3, padding=3))
    reason = {
        "html": "web page",
        "empty": "empty",
        "short": f"{size - 40:,} bytes",
        "long": f"{size + 40:,} bytes",
        "other-mail": "bytes",
    }[lie]
    assert reason in mail.reason
    assert mail.files[0].startswith("Inbox/20240301-000300_Bob_mail-3_")


# --- Resets


def day(minute: int) -> str:
    return f"2024-03-01T00:{minute:02}:00Z"


def reset(account: Account, first: int = 0, *, later: int = 0, equal_sizes: bool = False) -> None:
    """Give an account mails with the ids M1, M2 and so on. Their subjects begin at `first`."""
    mails = [text_mail(first + number, padding=50 - equal_sizes) for number in range(MAILS)]
    dates = [day(number + later) for number in range(MAILS)]
    # Of the mail that arrives again, at least one has another time.
    dates[0] = day(first)
    account.reset(mails, received_at=dates, equal_sizes=equal_sizes)


@pytest.mark.parametrize("cache", ["kept", "deleted"])
@pytest.mark.parametrize("later", [0, 20])
async def test_a_reset_between_two_snapshots(lying: Lying, cache: str, later: int) -> None:
    """The ids and the sizes are the same again, and perhaps most times of receipt."""
    account = lying.server.primary
    reset(account)
    await lying.snapshot()
    reset(account, 50, later=later, equal_sizes=True)
    if cache == "deleted":
        shutil.rmtree(lying.directory / "cache")
    if later:
        with pytest.raises(TooMuchGoneError):
            await lying.snapshot()
        assert len(dates(lying.dest)) == 1
    summary = await lying.snapshot(max_gone=100)
    assert summary.fetched + summary.taken_over == MAILS
    again = await lying.snapshot()
    assert (again.fetched, again.new, again.gone) == (0, 0, 0)


async def test_an_emptied_account(lying: Lying) -> None:
    """The index does not follow the server. So the old state can still be copied."""
    account = lying.server.primary
    await lying.snapshot()
    gone = list(account.emails)[1:]
    account.destroy_emails(gone)
    account.forget_changes()
    with pytest.raises(TooMuchGoneError, match="--max-gone 100"):
        await lying.snapshot()
    assert len(dates(lying.dest)) == 1
    assert (await lying.snapshot(max_gone=100)).gone == len(gone)


async def test_the_old_state_of_an_emptied_account(lying: Lying) -> None:
    await lying.snapshot()
    account = lying.server.primary
    account.destroy_emails(list(account.emails)[1:])
    account.forget_changes()
    cache = lying.directory / "cache"
    report = RecordingReport()
    async with account_opener(lying.source, cache, report, allow_stale=True) as opener:
        summary = await create_snapshot(opener, Repository(lying.dest), max_gone=50, report=report)
    assert (summary.mails, summary.gone, summary.fetched) == (MAILS + 1, 0, 0)
    assert "copying its state of" in report.notices[-1]
