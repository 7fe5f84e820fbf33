"""An account that is listed again: what is kept, what is applied, and when a new epoch begins."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmapfs.errors import TooMuchGoneError
from jmapfs.index.writer import IndexWriter
from jmapfs.sync import synchronizer
from tests.server import Account
from tests.sync.followed_account import Follower, followed, message, small_account

DATES = [f"2024-03-01T00:{number:02}:00Z" for number in range(40)]
LATER = [f"2025-03-01T00:{number:02}:00Z" for number in range(40)]


def mails(first: int, count: int = 12) -> list[bytes]:
    """Return mails of equal sizes."""
    return [message(number) for number in range(first, first + count)]


@asynccontextmanager
async def numbered(tmp_path: Path, **quirks: Any) -> Any:
    """An index of an account whose ids are numbered from 1; it will be reset."""
    account = Account()
    account.create_mailbox("Inbox", mailbox_id="P0")
    account.reset(mails(100), received_at=DATES[:12])
    async with followed(account, tmp_path, **{"max_objects_in_get": 5} | quirks) as f:
        await f.update()
        f.assert_true()
        yield f


async def assert_stale(f: Follower, before: Any, *, gone: int, total: int, reset: bool) -> None:
    with pytest.raises(TooMuchGoneError, match=f"{gone} of {total} mails are gone"):
        await f.update()
    state = f.writer.state()
    assert state.stale is not None
    assert (state.stale.gone, state.stale.total, state.stale.reset) == (gone, total, reset)
    assert state.consistent
    assert f.shown() == before


# --- Reset servers


async def test_a_reset_server_does_not_empty_the_tree(tmp_path: Path) -> None:
    async with numbered(tmp_path) as f:
        before, epoch = f.shown(), f.writer.epoch()
        f.account.reset(mails(200), received_at=LATER[:12])
        await assert_stale(f, before, gone=12, total=12, reset=True)
        f.counts.reset()
        # Nothing has changed since: the account is not listed again.
        await assert_stale(f, before, gone=12, total=12, reset=True)
        assert f.counts.pages == 0
        assert f.writer.epoch() == epoch
        assert await f.update(accept_deletions=True)
        assert f.counts.pages == 0
        await f.assert_as_if_new()
        assert f.writer.state().stale is None
        assert f.writer.epoch() not in {"", epoch}


@pytest.mark.parametrize("equal_dates", [0, 4, 8, 12])
async def test_reused_ids_begin_a_new_epoch(tmp_path: Path, equal_dates: int) -> None:
    """The ids and sizes are equal, and some dates or all of them: the subjects differ."""
    async with numbered(tmp_path) as f:
        before, epoch = f.shown(), f.writer.epoch()
        dates = DATES[:equal_dates] + LATER[equal_dates:12]
        f.account.reset(mails(200), received_at=dates)
        if equal_dates < 6:
            await assert_stale(f, before, gone=12 - equal_dates, total=12, reset=True)
            await f.update(accept_deletions=True)
        else:
            await f.update()
        assert f.writer.epoch() not in {"", epoch}
        await f.assert_as_if_new()


async def test_a_reset_seen_in_changes_lists_the_account_again(tmp_path: Path) -> None:
    """The server still reports changes, but an id stands for another email."""
    async with numbered(tmp_path) as f:
        epoch = f.writer.epoch()
        old = f.account.emails["M3"]
        f.account.destroy_email("M3")
        f.account.add_email(message(900), ["P0"], (), LATER[0], email_id="M3")
        assert f.account.emails["M3"].blob_id != old.blob_id
        await f.update()
        assert f.counts.pages > 0
        assert f.writer.epoch() not in {"", epoch}
        await f.assert_as_if_new()


async def test_a_reported_reset_lists_the_account_again(tmp_path: Path) -> None:
    async with numbered(tmp_path) as f:
        epoch, before = f.writer.epoch(), f.shown()
        await f.update(reset_reported=True)
        assert f.writer.epoch() not in {"", epoch}
        assert f.shown() == before
        await f.assert_as_if_new()


async def test_ids_that_contain_a_sha1_need_no_epoch(tmp_path: Path) -> None:
    async with numbered(tmp_path, sha1_blob_ids=True) as f:
        before = f.shown()
        assert f.writer.epoch() == ""
        assert f.writer.state().blob_ids_are_sha1
        f.account.reset(mails(200), received_at=LATER[:12])
        await assert_stale(f, before, gone=12, total=12, reset=False)
        await f.update(accept_deletions=True)
        assert f.writer.epoch() == ""
        f.assert_true()


async def test_a_corrected_size_is_no_reset(tmp_path: Path) -> None:
    """The server first states a wrong size, later the size that the content has."""
    async with numbered(tmp_path) as f:
        epoch, size = f.writer.epoch(), f.account.emails["M3"].size
        f.quirks.size_offsets = {"M3": 5}
        f.account.set_keywords("M3", ["$flagged"])
        await f.update()  # the stated size is a reset, so a new epoch begins
        assert f.writer.epoch() != epoch
        epoch = f.writer.epoch()
        with f.writer.transaction():
            f.writer.correct_size(f.account.emails["M3"].blob_id, size)
        f.quirks.size_offsets = {}
        f.account.set_keywords("M3", ["$seen"])
        await f.update()
        f.account.forget_changes()
        await f.update()
        assert f.writer.epoch() == epoch
        f.assert_true()


async def test_a_date_that_is_repaired_is_no_reset(tmp_path: Path) -> None:
    async with numbered(tmp_path) as f:
        epoch = f.writer.epoch()
        f.quirks.email_overrides = {"M3": {"receivedAt": "32547-12-05T15:30:08Z"}}
        for _ in range(2):
            f.counts.reset()
            f.account.set_keywords("M2", ["$flagged"])
            f.account.forget_changes()
            await f.update()
            assert f.counts.pages > 0
            f.quirks.email_overrides = {}
        assert f.writer.epoch() == epoch
        await f.assert_as_if_new()


@pytest.mark.parametrize("dates", [DATES, LATER])
async def test_blob_ids_that_are_reused_under_new_email_ids(
    tmp_path: Path, dates: list[str]
) -> None:
    async with numbered(tmp_path) as f:
        epoch, blobs = f.writer.epoch(), {email.blob_id for email in f.account.emails.values()}
        f.account.reset(mails(200), received_at=dates[:12])
        f.account.change_email_ids()
        f.account.forget_changes()
        assert {email.blob_id for email in f.account.emails.values()} == blobs
        await f.update(accept_deletions=True)
        assert f.writer.epoch() not in {"", epoch}
        await f.assert_as_if_new()


async def test_new_email_ids_alone_are_no_reset(tmp_path: Path) -> None:
    async with numbered(tmp_path) as f:
        epoch, before = f.writer.epoch(), f.shown()
        f.account.change_email_ids()
        f.account.forget_changes()
        await f.update()
        assert f.writer.epoch() == epoch
        assert f.shown() == before
        await f.assert_as_if_new()


async def test_a_reset_during_the_first_listing(tmp_path: Path) -> None:
    account = Account()
    account.create_mailbox("Inbox", mailbox_id="P0")
    account.reset(mails(100, 24), received_at=DATES[:24])
    async with followed(account, tmp_path, max_objects_in_get=3) as f:
        # Three requests are in flight, so the first emails are stored before the ninth.
        with interrupted_at(f, 9):
            await f.update()
        epoch = f.writer.epoch()
        account.reset(mails(200, 24), received_at=DATES[:24])
        await f.update()
        assert f.writer.epoch() not in {"", epoch}
        await f.assert_as_if_new()


# --- Mail that is gone


async def test_below_the_threshold_deletions_are_followed(tmp_path: Path) -> None:
    async with followed(small_account(20), tmp_path) as f:
        await f.update()
        f.account.destroy_emails([f"M{number}" for number in range(9)])
        f.account.forget_changes()
        await f.update()
        await f.assert_as_if_new()


async def test_another_threshold(tmp_path: Path) -> None:
    async with followed(small_account(20), tmp_path) as f:
        await f.update()
        before = f.shown()
        f.account.destroy_emails([f"M{number}" for number in range(9)])
        f.account.forget_changes()
        with pytest.raises(TooMuchGoneError):
            await f.update(max_gone=20.0)
        assert f.shown() == before
        await f.update(max_gone=50.0)
        await f.assert_as_if_new()


async def test_reported_deletions_are_always_followed(tmp_path: Path) -> None:
    async with followed(small_account(20), tmp_path) as f:
        await f.update()
        f.account.destroy_emails(list(f.account.emails))
        await f.update()
        await f.assert_as_if_new()


async def test_when_mail_is_back_the_tree_follows_again(tmp_path: Path) -> None:
    async with followed(small_account(20), tmp_path) as f:
        await f.update()
        before, epoch = f.shown(), f.writer.epoch()
        saved = dict(f.account.emails)
        # The blobs stay on the server.
        raws = {email.id: f.account.blobs.read(email.blob_id) or b"" for email in saved.values()}
        f.account.destroy_emails(list(saved))
        f.account.forget_changes()
        files = len({attributes.inode for attributes in f.emails_shown().values()})
        await assert_stale(f, before, gone=files, total=files, reset=False)
        for email in saved.values():
            f.account.add_email(
                raws[email.id],
                sorted(email.mailbox_ids),
                sorted(email.keywords),
                email.received_at,
                email_id=email.id,
            )
        await f.update()
        assert f.writer.state().stale is None
        assert f.writer.epoch() == epoch
        assert f.emails_shown() == {path: before[path] for path in f.emails_shown()}
        f.assert_true()


async def test_mail_that_is_back_under_the_same_state_is_found(tmp_path: Path) -> None:
    """A restored server may have the state of the tree, and may have had it while it was empty."""
    async with followed(small_account(20), tmp_path) as f:
        await f.update()
        before = f.shown()
        hidden = [email_id for email_id in f.account.emails if email_id != "M0"]
        f.quirks.ghost_ids = hidden
        with pytest.raises(TooMuchGoneError):
            await f.update(compare=True)
        state = f.writer.state()
        assert state.stale is not None
        assert state.stale.email_state == state.email_state == f.account.states["Email"]
        f.counts.reset()
        with pytest.raises(TooMuchGoneError):
            await f.update(ask_again=False)
        assert f.counts.pages == 0
        with pytest.raises(TooMuchGoneError):
            await f.update()
        f.quirks.ghost_ids = []
        await f.update()
        assert f.writer.state().stale is None
        assert f.shown() == before
        f.assert_true()


async def test_a_stale_tree_is_not_compared_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with numbered(tmp_path) as f:
        f.account.reset(mails(200), received_at=LATER[:12])
        with pytest.raises(TooMuchGoneError):
            await f.update()
        f.account.add_email(message(500), ["P0"])
        f.counts.reset()
        with pytest.raises(TooMuchGoneError):
            await f.update(ask_again=False)
        assert f.counts.pages == 0
        with pytest.raises(TooMuchGoneError):
            await f.update(ask_again=True)
        assert f.counts.pages > 0
        f.account.add_email(message(501), ["P0"])
        f.counts.reset()
        monkeypatch.setattr(synchronizer, "_STALE_SECONDS", 0.0)
        with pytest.raises(TooMuchGoneError):
            await f.update(ask_again=False)
        assert f.counts.pages > 0


# --- Interruptions


@contextmanager
def interrupted_at(f: Follower, page: int) -> Any:
    with trio.CancelScope() as scope:

        def interrupt(_account: Account, asked: int) -> None:
            if asked == page:
                scope.cancel()

        f.server.page_hooks.append(interrupt)
        try:
            yield
        finally:
            f.server.page_hooks.remove(interrupt)
    assert scope.cancelled_caught


async def test_an_interrupted_new_listing_resumes(tmp_path: Path) -> None:
    async with followed(small_account(40), tmp_path, max_objects_in_get=5) as f:
        await f.update()
        before = f.shown()
        f.account.destroy_emails(["M1", "M30", "M31"])
        f.account.add_email(message(500), ["P0"])
        f.account.set_keywords("M20", ["$flagged"])
        f.account.forget_changes()
        with interrupted_at(f, 6):
            await f.update()
        assert f.shown() == before
        state = f.writer.state()
        assert state.complete
        assert state.consistent
        f.counts.reset()
        await f.update()
        assert f.counts.pages == 0
        await f.assert_as_if_new()


@pytest.mark.parametrize("method", ["end_listing", "replace_mailboxes", "set_state"])
async def test_a_crash_while_a_new_listing_is_applied(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with numbered(tmp_path) as f:
        before, epoch = f.shown(), f.writer.epoch()
        f.account.reset(mails(200), received_at=DATES[:8] + LATER[:4])
        fail_in_apply(monkeypatch, method)
        with pytest.raises(InterruptedError):
            await f.update()
        assert f.shown() == before
        assert f.writer.epoch() == epoch
        monkeypatch.undo()
        f.counts.reset()
        await f.update()
        assert f.counts.pages == 0
        assert f.writer.epoch() != epoch
        await f.assert_as_if_new()


def fail_in_apply(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Make the first call of a method of the writer fail after it has done its work."""
    original: Callable[..., Any] = getattr(IndexWriter, method)

    def failing(self: IndexWriter, *arguments: Any) -> Any:
        original(self, *arguments)
        raise InterruptedError

    monkeypatch.setattr(IndexWriter, method, failing)


async def test_a_listing_in_parts_is_never_shown(tmp_path: Path) -> None:
    """Every commit during a new listing has the old tree or the new one."""
    async with numbered(tmp_path, max_objects_in_get=2) as f:
        before = f.shown()
        f.account.reset(mails(200), received_at=DATES[:8] + LATER[:4])
        seen = []
        f.server.page_hooks.append(lambda *_: seen.append(f.shown()))
        await f.update()
        assert len(seen) > 5
        assert all(tree == before for tree in seen)
        await f.assert_as_if_new()
