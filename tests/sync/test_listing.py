"""The first listing and later ones: complete or resumed, whatever happens in between."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from jmapfs.errors import ConfigError
from jmapfs.jmap.client import connect
from jmapfs.sync.synchronizer import Synchronizer
from tests.server import Account, MailServer, PageChange, running_server
from tests.server.account import Listing
from tests.server.hostile import hostile_account
from tests.server.sample import sample_account
from tests.sync.followed_account import (
    CREDENTIALS,
    Follower,
    followed,
    following,
    held_by_index,
    held_by_server,
    message,
    portable,
    small_account,
)


@pytest.mark.parametrize("make", [Account, small_account, sample_account, hostile_account])
async def test_the_first_listing_is_what_the_server_has(
    tmp_path: Path, make: Callable[[], Account]
) -> None:
    account = make()
    async with followed(account, tmp_path) as f:
        assert await f.update()
        f.assert_true()
        listed, total = f.progress[-1]
        assert listed == len(account.emails)
        assert total == (listed or None)
        state = f.writer.state()
        assert (state.server, state.account_id) == (f"{f.url}/jmap/api", account.id)
        assert (state.account_name, state.username) == (account.name, "alice@example.org")
        assert state.mailbox_state == account.states["Mailbox"]
        # An email has a name in each of its mailboxes; all are links to one file.
        names = sum(len(email.mailbox_ids) for email in account.emails.values())
        files = f.emails_shown().values()
        assert len(files) == names
        by_inode = {attributes.inode: attributes.links for attributes in files}
        assert sum(by_inode.values()) == names
        blobs = {(email.blob_id, email.received_at) for email in account.emails.values()}
        assert len(by_inode) == len(blobs)


async def test_paths_of_the_tree(tmp_path: Path) -> None:
    async with followed(small_account(5), tmp_path) as f:
        await f.update()
        paths = sorted(path.rpartition("_")[0] for path in f.emails_shown())
        assert paths == sorted(
            [
                "Inbox/20240301-000000_Sender-0_Number-0",
                "Work/20240301-000100_Sender-1_Number-1",
                "Work/Clients/20240301-000200_Sender-1_Number-1",
                "Inbox/20240301-000300_Sender-3_Number-3",
                *_numbered(f, "Inbox/20240301-000300_Sender-3_Number-3"),
                "Work/20240301-000300_Sender-3_Number-3",
            ]
        )


def _numbered(f: Follower, stem: str) -> list[str]:
    """Return a name without the number of the second copy of a message in a mailbox."""
    second = [path for path in f.emails_shown() if path.endswith("_2.eml")]
    assert len(second) == 1
    assert second[0].startswith(stem)
    return [second[0].removesuffix("_2.eml")]


@pytest.mark.parametrize(
    ("quirks", "pages"),
    [
        ({"max_objects_in_get": 50}, 1),
        # The pages overlap by one id; the last page has only this id.
        ({"query_limit": 20}, lambda count: math.ceil((count - 1) / 19) + 1),
        ({"query_limit": 1000}, 1),
        ({"max_objects_in_get": 50, "max_calls_in_request": 1}, 1),
        ({"accepted_limits": (0, 1000)}, 2),
        ({"accepted_limits": (0, 0)}, 5),
    ],
)
async def test_listing_within_the_limits_of_the_server(
    tmp_path: Path, quirks: dict[str, Any], pages: int | Callable[[int], int]
) -> None:
    async with followed(sample_account(), tmp_path, **quirks) as f:
        await f.update()
        f.assert_true()
        expected = pages if isinstance(pages, int) else pages(len(f.account.emails))
        assert f.counts.pages == expected
        assert [listed for listed, _ in f.progress] == sorted(listed for listed, _ in f.progress)


async def test_a_listing_interrupted_at_any_page_resumes(tmp_path: Path) -> None:
    account, size = small_account(30), 5
    server = MailServer(account)
    server.quirks.max_objects_in_get = size
    # A page of ids, then the pages of emails.
    pages = 1 + len(account.emails) // size
    async with running_server(server) as url:
        async with following(server, tmp_path / "whole", url) as whole:
            await whole.update()
            expected = portable(whole.shown())
        for interrupted in range(1, pages + 1):
            async with following(server, tmp_path / f"at{interrupted}", url) as f:
                await _interrupted_at(f, interrupted)
                assert not f.writer.state().complete
                progress = f.writer.listing_progress()
                # Pages that were not stored yet are lost: those of three requests.
                durable = progress.listed // size if progress else 0
                assert interrupted - 4 <= durable <= interrupted - 1
                server.counts.reset()
                await f.update()
                # The ids are not listed again, and no email that is stored is fetched again.
                assert server.counts.pages == (progress is None)
                assert server.counts.methods["Email/get"] <= pages - durable + 5
                f.assert_true()
                assert portable(f.shown()) == expected


async def test_a_listing_interrupted_repeatedly_completes(tmp_path: Path) -> None:
    async with followed(small_account(30), tmp_path, max_objects_in_get=5) as f:
        listed = 0
        for _ in range(3):
            await _interrupted_at(f, f.server.query_page + 3)
            progress = f.writer.listing_progress()
            assert progress is not None
            assert progress.listed >= listed
            listed = progress.listed
        assert listed >= 5
        await f.update()
        await f.assert_as_if_new()


async def _interrupted_at(f: Follower, page: int) -> None:
    """List, and cancel when a page is requested."""
    with trio.CancelScope() as scope:

        def interrupt(_account: Account, asked: int) -> None:
            if asked == page:
                scope.cancel()

        f.server.page_hooks.append(interrupt)
        try:
            await f.update()
        finally:
            f.server.page_hooks.remove(interrupt)
    assert scope.cancelled_caught


async def test_changes_before_an_interrupted_listing_resumes(tmp_path: Path) -> None:
    """An email that was listed and is gone by now is not a bad email."""
    async with followed(small_account(30), tmp_path, max_objects_in_get=5) as f:
        await _interrupted_at(f, 5)
        progress = f.writer.listing_progress()
        assert progress is not None
        f.account.destroy_emails(["M0", "M15", "M29"])
        f.account.move_email("M1", "P1", "P3")
        f.account.add_email(message(100), ["P3"], (), "2023-01-01T00:00:00Z")
        await f.update()
        assert f.writer.bad_emails() == []
        await f.assert_as_if_new()


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "arrives early": ("add_email", {"raw": "eA==", "mailbox_ids": ["P0"], "email_id": "Mnew"}),
    "vanishes, listed": ("destroy_email", {"email_id": "M1"}),
    "vanishes, to come": ("destroy_email", {"email_id": "M20"}),
    "moves, listed": ("move_email", {"email_id": "M1", "from_id": "P1", "to_id": "P3"}),
    "moves, to come": ("move_email", {"email_id": "M20", "from_id": "P1", "to_id": "P3"}),
    "keywords": ("set_keywords", {"email_id": "M1", "keywords": ["$flagged"]}),
    "a mailbox goes": ("destroy_mailbox", {"mailbox_id": "P2"}),
    "a mailbox comes": ("create_mailbox", {"name": "New", "parent_id": "P1"}),
    "a mailbox is renamed": ("rename_mailbox", {"mailbox_id": "P1", "name": "Play"}),
    "a mailbox moves": ("move_mailbox", {"mailbox_id": "P2", "parent_id": "P3"}),
    "email ids": ("change_email_ids", {}),
    "some email ids": ("change_email_ids", {"email_ids": ["M3", "M4", "M15", "M29"]}),
    "mailbox ids": ("change_mailbox_ids", {}),
    "the log": ("forget_changes", {}),
}


@pytest.mark.parametrize("page", [3, 7])
@pytest.mark.parametrize("query_limit", [None, 4])
@pytest.mark.parametrize("name", CHANGES)
async def test_changes_during_a_listing(
    tmp_path: Path, name: str, page: int, query_limit: int | None
) -> None:
    """The changes come while emails are fetched, or already while ids are listed."""
    method, arguments = CHANGES[name]
    async with followed(
        small_account(30), tmp_path, max_objects_in_get=5, query_limit=query_limit
    ) as f:
        f.quirks.page_changes.append(PageChange(page, method, dict(arguments)))
        await f.update()
        assert f.quirks.page_changes == []
        await f.assert_as_if_new()


@pytest.mark.parametrize("page", [1, 3, 7])
async def test_a_complete_change_during_a_listing(tmp_path: Path, page: int) -> None:
    async with followed(small_account(30), tmp_path, max_objects_in_get=5) as f:
        f.quirks.page_changes = [
            PageChange(page, method, dict(arguments))
            for name, (method, arguments) in CHANGES.items()
            # After this the other ids do not exist any more.
            if name not in {"email ids", "some email ids", "mailbox ids", "the log"}
            and not name.startswith("vanishes")
            and name != "a mailbox goes"
        ]
        await f.update()
        assert f.quirks.page_changes == []
        await f.assert_as_if_new()


async def test_email_missing_from_responses_costs_only_itself(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path, max_objects_in_get=5, omit_ids=["M7"]) as f:
        await f.update()
        assert f.writer.state().complete
        held = held_by_index(f.database)
        f.account.destroy_email("M7")
        assert held == held_by_server(f.account)


async def test_email_missing_after_changes_costs_only_itself(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        before = held_by_index(f.database)
        f.account.set_keywords("M7", ["$flagged"])
        f.quirks.omit_ids.append("M7")
        await f.update()
        # Its earlier values are shown until the server sends new ones.
        assert held_by_index(f.database) == before
        assert f.writer.bad_emails() == []
        await f.update(compare=True)
        assert held_by_index(f.database) == before
        assert f.writer.state().shortfall is None
        f.quirks.omit_ids.clear()
        await f.update()
        f.assert_true()


async def test_email_missing_from_responses_to_a_second_listing_is_kept(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path, max_objects_in_get=5) as f:
        await f.update()
        before = f.shown()
        f.quirks.omit_ids.append("M7")
        f.account.set_keywords("M2", ["$flagged"])
        f.account.forget_changes()
        await f.update()
        assert f.shown() == before
        assert f.writer.state().shortfall is None
        f.account.destroy_email("M7")
        f.account.forget_changes()
        await f.update()
        await f.assert_as_if_new()


async def test_emails_missing_from_a_second_listing_are_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An email missing from a query is not removed: only notFound of Email/get removes it."""
    hidden = {"M5", "M10", "M22"}
    async with followed(small_account(), tmp_path, max_objects_in_get=5) as f:
        await f.update()
        before = f.shown()
        listing = Account.listing

        def partial(account: Account, mailbox_id: str | None, *, ascending: bool) -> Listing:
            ids = listing(account, mailbox_id, ascending=ascending).ids
            kept = [i for i in ids if i not in hidden]
            return Listing(kept, {i: position for position, i in enumerate(kept)})

        monkeypatch.setattr(Account, "listing", partial)
        f.account.set_keywords("M10", ["$flagged"])
        f.account.destroy_email("M22")
        f.account.forget_changes()
        f.counts.reset()
        await f.update()
        f.assert_true()
        gone = [path for path in before if path not in f.shown()]
        assert len(gone) == 1


async def test_an_empty_second_listing_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with followed(small_account(), tmp_path, max_objects_in_get=5) as f:
        await f.update()
        before = f.shown()
        monkeypatch.setattr(Account, "listing", lambda *_, **__: Listing([], {}))
        f.account.set_keywords("M10", ["$flagged"])
        f.account.forget_changes()
        await f.update()
        f.assert_true()
        assert f.shown() == before


async def test_only_not_found_removes_emails(tmp_path: Path) -> None:
    """notFound is believed, in a second listing and after changes; the email can come back."""
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        before = f.shown()
        f.quirks.not_found_ids.append("M7")
        assert not await f.update()  # it was not requested
        assert f.shown() == before
        f.account.set_keywords("M8", [])
        f.account.forget_changes()
        await f.update()
        assert set(f.account.emails) - set(held_by_index(f.database).emails) == {"M7"}
        f.quirks.not_found_ids.clear()
        f.account.set_keywords("M7", ["$seen", "$flagged"])
        await f.update()
        await f.assert_as_if_new()
        assert portable(f.shown()) == portable(before)


async def test_an_interrupted_second_listing_removes_nothing(tmp_path: Path) -> None:
    async with followed(small_account(30), tmp_path, max_objects_in_get=5) as f:
        await f.update()
        before = f.shown()
        f.account.set_keywords("M25", ["$flagged"])
        f.account.destroy_email("M29")
        f.account.forget_changes()
        await _interrupted_at(f, 4)
        assert f.writer.state().complete
        assert f.shown() == before
        f.counts.reset()
        await f.update()
        assert f.counts.pages == 0
        await f.assert_as_if_new()


@pytest.mark.parametrize("other", ["account", "user", "location"])
async def test_the_index_of_another_account_is_refused_unchanged(
    tmp_path: Path, other: str
) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        state = f.writer.state()
        if other == "account":
            state = replace(state, account_id="Aother")
        elif other == "user":
            state = replace(state, username="bob@example.org")
        else:
            state = replace(
                state, location="other.example.org", origins=(), server="https://other/"
            )
        with f.writer.transaction():
            f.writer.set_state(state)
        before = f.database.path.read_bytes(), f.shown(), f.writer.state()
        f.account.destroy_email("M1")
        f.counts.reset()
        synchronizer = Synchronizer(f.client, f.database, f.writer)
        with pytest.raises(ConfigError, match="belongs to account"):
            await synchronizer.bring_up_to_date(lambda *_: None)
        assert (f.database.path.read_bytes(), f.shown(), f.writer.state()) == before
        assert f.counts.http_requests == 0


@pytest.mark.parametrize("is_old", [True, False])
async def test_the_index_continues_after_a_move_of_the_api(tmp_path: Path, *, is_old: bool) -> None:
    """An earlier version stored neither the location nor the origins."""
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        known = f.writer.state()
        moved = replace(known, server="https://other:8443/api", origins=("https://other:8443",))
        if is_old:
            moved = replace(moved, location="", origins=())
        with f.writer.transaction():
            f.writer.set_state(moved)
        f.counts.reset()
        await f.update()
        assert f.counts.methods["Email/query"] == 0
        state = f.writer.state()
        assert state.moved_at > known.synced_at
        origins = (*known.origins, "https://other:8443")
        assert replace(state, moved_at=0.0) == replace(known, origins=origins)
        f.assert_true()


async def test_accounts_of_one_server_have_separate_indexes(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        f.server.add_account(Account("Ateam", "team@example.org"))
        async with connect(f"{f.url}/session", CREDENTIALS, account="Ateam") as client:
            synchronizer = Synchronizer(client, f.database, f.writer)
            with pytest.raises(ConfigError, match="Ateam"):
                await synchronizer.bring_up_to_date(lambda *_: None)
        f.assert_true()
