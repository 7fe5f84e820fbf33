"""Numbers of emails: what is missing or too much is found, healed, or reported."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jmapfs.index.rows import Shortfall
from jmapfs.jmap.types import Email
from jmapfs.sync import comparison
from jmapfs.sync.id_listing import IdListing
from tests.server import Account, MethodFault
from tests.sync.followed_account import (
    Follower,
    followed,
    following,
    held_by_index,
    message,
    portable,
    small_account,
)

DAY = 24 * 3600.0


async def compared(f: Follower) -> Shortfall | None:
    """Bring the index up to date, compare, and return the shortfall."""
    await f.update(compare=True)
    return f.writer.state().shortfall


def lose(f: Follower, *email_ids: str) -> None:
    """Remove emails from the index, as an earlier version could have lost them."""
    with f.writer.transaction():
        f.writer.remove_emails(email_ids)


def ids_of(f: Follower) -> set[str]:
    return set(held_by_index(f.database).emails)


# --- Shortfalls


@pytest.mark.parametrize("no_total", [False, True])
async def test_hidden_mail_is_a_shortfall(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, no_total: bool
) -> None:
    hidden = ["M3", "M10"]
    async with followed(small_account(), tmp_path, unlisted_ids=hidden, no_total=no_total) as f:
        with caplog.at_level(logging.WARNING):
            await f.update()
        assert ids_of(f) == f.account.emails.keys() - set(hidden)
        state = f.writer.state()
        assert (state.complete, state.consistent) == (True, True)
        assert state.shortfall is not None
        assert (state.shortfall.found, state.shortfall.expected) == (21, 23)
        lacking = {box: theirs - known for box, known, theirs in state.shortfall.mailboxes}
        assert lacking == {"P0": 1, "P1": 1}
        since = state.shortfall.since
        assert abs(since - time.time()) < 60
        assert caplog.text.count("counts more emails than it lists") == 1

        # The same shortfall: only ids are listed; no line in the log, the same time.
        caplog.clear()
        f.counts.reset()
        with caplog.at_level(logging.INFO, "jmapfs.sync"):
            assert await compared(f) == state.shortfall
        assert (f.counts.pages, f.counts.totals) == (3, 1)
        assert f.counts.http_requests <= 6
        assert not caplog.text

        # The next day the account is listed again.
        with f.writer.transaction():
            state = f.writer.state()
            listed_again_at = state.listed_again_at - DAY
            f.writer.set_state(replace(state, listed_again_at=listed_again_at))
        f.counts.reset()
        assert await compared(f) == state.shortfall
        assert f.counts.pages > 3

        # Some of it is listed now.
        f.counts.reset()
        f.quirks.unlisted_ids = ["M3"]
        shortfall = await compared(f)
        assert shortfall is not None
        assert (shortfall.found, shortfall.expected) == (22, 23)
        assert shortfall.since == since

        # All of it is listed: the index heals.
        f.quirks.unlisted_ids = []
        assert await compared(f) is None
        f.assert_true()


async def test_a_total_that_counts_only_a_page_hides_nothing(tmp_path: Path) -> None:
    """The first list ends too early. The numbers of the mailboxes show that."""
    async with followed(small_account(), tmp_path, page_total=True, query_limit=5) as f:
        await f.update()
        f.assert_true()
        assert f.writer.state().shortfall is None


async def test_a_total_that_counts_only_a_page_removes_nothing(tmp_path: Path) -> None:
    """The number of a mailbox that the server does not describe cannot show that it has mail."""
    async with followed(
        small_account(), tmp_path, page_total=True, query_limit=5, odd_values=UNDESCRIBED
    ) as f:
        await f.update()
        assert f.writer.counts().emails == len(f.account.emails)


async def test_more_mailboxes_than_the_server_returns_at_once(tmp_path: Path) -> None:
    """Their numbers are requested in parts. Without a total, nothing else shows what is lacking."""
    async with followed(
        small_account(), tmp_path, unlisted_ids=["M3"], no_total=True, max_objects_in_get=2
    ) as f:
        shortfall = await compared(f)
        assert shortfall is not None
        assert (shortfall.found, shortfall.expected) == (22, 23)


async def test_new_mail_is_no_reason_to_list_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same emails are lacking, so the numbers differ by as much as before."""
    async with followed(small_account(), tmp_path, unlisted_ids=["M3"]) as f:
        await f.update()
        f.account.add_email(message(500), ["P0"], email_id="Mnew")
        f.counts.reset()
        caplog.clear()
        with caplog.at_level(logging.INFO, "jmapfs.sync"):
            shortfall = await compared(f)
        assert shortfall is not None
        assert (shortfall.found, shortfall.expected) == (23, 24)
        assert f.counts.pages <= 3
        assert not caplog.text


async def test_lost_mail_comes_back(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        before = f.shown()
        lose(f, "M3", "M10")
        assert not await f.update()  # nothing has changed at the server
        assert f.shown() != before
        f.counts.reset()
        assert await f.update(compare=True)
        assert portable(f.shown()) == portable(before)
        f.assert_true()
        assert f.writer.state().shortfall is None
        assert (f.counts.pages, f.counts.totals) == (1, 2)


@pytest.mark.parametrize("no_total", [False, True])
async def test_mail_in_the_wrong_mailbox_is_found(tmp_path: Path, *, no_total: bool) -> None:
    """The totals agree, the numbers of the mailboxes do not."""
    async with followed(small_account(), tmp_path, no_total=no_total) as f:
        await f.update()
        [email], _, _ = await f.client.emails(["M1"])
        with f.writer.transaction():
            f.writer.put_emails([_moved(email, "P3")])
        await compared(f)
        f.assert_true()


def _moved(email: Email, mailbox_id: str) -> Email:
    return Email(
        id=email.id,
        blob_id=email.blob_id,
        mailbox_ids=type(email.mailbox_ids)({mailbox_id}),
        size=email.size,
        received_at=email.received_at,
        thread_id=email.thread_id,
        keywords=email.keywords,
        subject=email.subject,
        from_=email.from_,
    )


async def test_equal_numbers_cost_one_request(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        f.counts.reset()
        await f.update()
        without = f.counts.http_requests
        f.counts.reset()
        state = f.writer.state()
        assert not await f.update(compare=True)
        assert f.counts.http_requests == without + 1
        assert f.writer.state() == replace(state, compared_at=f.writer.state().compared_at)
        assert f.writer.state().compared_at >= state.compared_at


async def test_a_small_limit_that_is_refused(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path, accepted_limits=(5, 10_000)) as f:
        await f.update()
        lose(f, "M3")
        assert await compared(f) is None
        f.assert_true()


async def test_an_account_that_changes_during_the_comparison(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        counts = f.client.counts
        numbers = iter(range(500, 502))

        async def changing() -> Any:
            if (number := next(numbers, None)) is not None:
                f.account.add_email(message(number), ["P0"])
            return await counts()

        f.client.counts = changing  # type: ignore[method-assign]
        assert await compared(f) is None
        f.assert_true()


async def test_a_reset_is_listed_once_although_the_account_changes(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        f.counts.reset()
        await f.update(reset_reported=True)
        pages, counts = f.counts.pages, f.client.counts

        async def changing() -> Any:
            if "Mnew" not in f.account.emails:
                f.account.add_email(message(500), ["P0"], email_id="Mnew")
            return await counts()

        f.client.counts = changing  # type: ignore[method-assign]
        f.counts.reset()
        await f.update(reset_reported=True)
        assert f.counts.pages == pages > 0
        f.assert_true()


async def test_an_account_that_always_changes_is_compared_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        compared_at = f.writer.state().compared_at
        counts = f.client.counts
        numbers = iter(range(500, 600))

        async def changing() -> Any:
            f.account.add_email(message(next(numbers)), ["P0"])
            return await counts()

        f.client.counts = changing  # type: ignore[method-assign]
        with caplog.at_level(logging.WARNING):
            assert await compared(f) is None
        assert f.writer.state().compared_at == compared_at
        assert caplog.text.count("changes all the time") == 1


async def test_mail_that_no_list_has_is_among_all_changes(tmp_path: Path) -> None:
    """Apache James does so with mail that is flagged as deleted; its session state is a state."""
    account = Account()
    for number in range(3):
        account.create_mailbox(f"Box {number}", mailbox_id=f"P{number}")
    first = account.states["Email"]
    for number in range(12):
        account.add_email(message(number), [f"P{number % 3}"], email_id=f"M{number}")
    async with followed(
        account,
        tmp_path,
        no_total=True,
        no_anchors=True,
        unlisted_ids=["M4", "M5"],
        session_overrides={"state": first},
    ) as f:
        await f.update()
        f.assert_true()
        assert f.writer.state().shortfall is None
        # Listings keep it, although they leave it out.
        account.set_keywords("M4", ["$flagged"])
        account.destroy_email("M5")
        account.forget_changes()
        await f.update()
        f.assert_true()
        assert f.writer.state().shortfall is None


# --- Surplus: gone means gone


async def with_ghost(f: Follower, *, blob: str = "own") -> None:
    """Make M7 an email that Email/get returns, but that no longer exists."""
    await f.update()
    if blob == "shared":
        # A thread merge gives the email another id; the old one lives on.
        email = f.account.emails["M7"]
        raw = f.account.blobs.read(email.blob_id) or b""
        f.account.add_email(
            raw, email.mailbox_ids, email.keywords, email.received_at, email_id="M7b"
        )
    f.quirks.ghost_ids = ["M7"]


@pytest.mark.parametrize("no_total", [False, True])
@pytest.mark.parametrize("blob", ["own", "shared"])
async def test_an_id_that_lives_on_is_gone(tmp_path: Path, blob: str, *, no_total: bool) -> None:
    async with followed(small_account(), tmp_path, no_total=no_total) as f:
        await with_ghost(f, blob=blob)
        assert await compared(f) is None
        assert ids_of(f) == f.account.emails.keys() - {"M7"}
        assert f.writer.state().consistent
        f.counts.reset()
        assert await compared(f) is None
        assert f.counts.pages == 0


@pytest.mark.parametrize("no_total", [False, True])
async def test_an_id_that_lives_on_beside_a_bad_email_is_gone(
    tmp_path: Path, *, no_total: bool
) -> None:
    """A bad email in the same mailbox is counted too."""
    odd = {"M10": {"blobId": None}}
    async with followed(small_account(), tmp_path, no_total=no_total, email_overrides=odd) as f:
        await with_ghost(f)
        f.account.set_keywords("M2", ["$flagged"])
        f.account.forget_changes()
        await f.update()
        assert ids_of(f) == f.account.emails.keys() - {"M7", "M10"}


async def test_a_copy_is_gone_even_if_the_totals_disagree(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await with_ghost(f, blob="shared")
        f.quirks.unlisted_ids = ["M1"]
        f.account.forget_changes()
        f.account.set_keywords("M2", ["$flagged"])
        await f.update()
        # M1 is counted, so it stays, although no list has it.
        assert ids_of(f) == f.account.emails.keys() - {"M7"}


async def test_mail_that_its_mailboxes_count_stays(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path, unlisted_ids=["M7"]) as f:
        f.quirks.unlisted_ids = []
        await f.update()
        f.quirks.unlisted_ids = ["M7"]
        f.account.forget_changes()
        f.account.set_keywords("M2", ["$flagged"])
        await f.update()
        f.assert_true()


async def test_only_ids_that_are_not_listed_are_dropped(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await with_ghost(f)
        synchronizer = f.synchronizer()
        await synchronizer.check_suspects(["M7", "M8", "Mnone"], lambda *_: None)
        assert ids_of(f) == f.account.emails.keys() - {"M7"}
        assert f.writer.state().consistent


async def test_a_listed_email_that_is_another_one_now_shows_a_reset(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        epoch = f.writer.epoch()
        await f.synchronizer().check_suspects(["M7", "M8"], lambda *_: None)
        assert f.writer.epoch() == epoch
        f.quirks.email_overrides = {"M7": {"receivedAt": "2020-01-01T00:00:00Z"}}
        compared_at = f.writer.state().compared_at
        await f.synchronizer().check_suspects(["M7", "M8"], lambda *_: None)
        assert f.writer.epoch() not in {"", epoch}
        assert ids_of(f) == f.account.emails.keys()
        assert f.writer.state().consistent
        # The account was listed, so the numbers are compared.
        assert f.writer.state().compared_at > compared_at


async def test_a_list_that_is_not_whole_drops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def list_some(_: object) -> IdListing:
        return IdListing({"M8": None}, None, is_whole=False)

    async with followed(small_account(), tmp_path) as f:
        await f.update()
        monkeypatch.setattr("jmapfs.sync.synchronizer.list_ids", list_some)
        await f.synchronizer().check_suspects(["M7", "M8"], lambda *_: None)
        f.assert_true()


async def test_an_email_that_only_one_of_two_lists_leaves_out_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        lists: list[int] = []

        def hide_once(_: Account, page: int) -> None:
            if page == 1:
                lists.append(page)
                f.quirks.ghost_ids = ["M7"] if len(lists) == 1 else []

        f.server.page_hooks.append(hide_once)
        # The number of emails in its mailbox does not tell that it is there.
        f.quirks.odd_values = {"P1": {"totalEmails": "null"}}
        f.account.set_keywords("M2", ["$flagged"])
        f.account.forget_changes()
        with caplog.at_level(logging.INFO):
            await f.update()
        assert len(lists) == 2
        f.assert_true()
        assert "removed" not in caplog.text


async def test_most_mail_gone_keeps_the_tree(tmp_path: Path) -> None:
    """The comparison does not weaken the protection against an emptied server."""
    from jmapfs.errors import TooMuchGoneError

    async with followed(small_account(), tmp_path) as f:
        await f.update()
        before = f.shown()
        f.quirks.ghost_ids = [f"M{number}" for number in range(15)]
        with pytest.raises(TooMuchGoneError):
            await f.update(compare=True)
        assert f.shown() == before


# --- Bad emails


@pytest.mark.parametrize("no_total", [False, True])
async def test_listed_but_never_found_is_a_bad_email(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, no_total: bool
) -> None:
    async with followed(small_account(), tmp_path, phantom_ids=["Mghost"], no_total=no_total) as f:
        with caplog.at_level(logging.WARNING):
            await f.update()
        f.assert_true()
        [bad] = f.writer.bad_emails()
        assert bad.id == "Mghost"
        assert bad.reason == "the server lists it, but does not find it"
        assert abs(bad.since - time.time()) < 60
        assert f.writer.state().shortfall is None
        assert caplog.text.count("Mghost") == 1

        caplog.clear()
        with caplog.at_level(logging.INFO, "jmapfs.sync"):
            await f.update(compare=True)
        assert f.writer.bad_emails() == [bad]
        assert not caplog.text

        # It is not listed any more.
        f.quirks.phantom_ids = []
        await f.update(compare=True)
        assert f.writer.bad_emails() == []


@pytest.mark.parametrize("no_total", [False, True])
async def test_bad_emails_are_requested_again(tmp_path: Path, *, no_total: bool) -> None:
    async with followed(
        small_account(),
        tmp_path,
        no_total=no_total,
        email_overrides={"M7": {"blobId": None}, "M8": {"size": "big"}},
    ) as f:
        await f.update()
        assert {bad.id: bad.reason for bad in f.writer.bad_emails()} == {
            "M7": "the server sends no blobId",
            "M8": 'size is not usable: "big"',
        }
        assert ids_of(f) == f.account.emails.keys() - {"M7", "M8"}
        assert f.writer.state().shortfall is None
        del f.quirks.email_overrides["M7"]
        f.account.destroy_email("M8")
        assert await f.update()
        assert f.writer.bad_emails() == []
        await f.assert_as_if_new()


async def test_an_id_that_is_reused_by_a_retried_email_is_a_reset(tmp_path: Path) -> None:
    """The server says nothing about an email that is shown, and then has another under its id."""
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        epoch = f.writer.epoch()
        f.quirks.omit_ids = ["M3"]
        f.account.set_keywords("M3", ["$flagged"])
        await f.update()
        assert f.writer.bad.ids() == ["M3"]
        f.account.destroy_email("M3")
        f.account.add_email(message(900), ["P0"], email_id="M3")
        f.quirks.omit_ids = []
        await f.update()
        assert f.writer.epoch() not in {"", epoch}
        await f.assert_as_if_new()


async def test_many_bad_emails_make_few_lines_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {f"M{number}": {"blobId": None} for number in range(150)}
    async with followed(small_account(160), tmp_path, email_overrides=odd) as f:
        with caplog.at_level(logging.WARNING):
            await f.update()
        assert len(f.writer.bad_emails()) == 150
        assert caplog.text.count("the server sends no blobId") == 100
        assert caplog.text.count("50 more emails cannot be shown") == 1


@pytest.mark.parametrize("no_total", [False, True])
@pytest.mark.parametrize("odd", [{"mailboxIds": "null"}, {"mailboxIds": "5", "size": "null"}])
async def test_odd_mailbox_ids_are_no_shortfall(
    tmp_path: Path, odd: dict[str, str], *, no_total: bool
) -> None:
    """The mailbox counts the email, but nobody can say that it is this one."""
    async with followed(small_account(), tmp_path, no_total=no_total, odd_values={"M7": odd}) as f:
        await f.update()
        f.counts.reset()
        assert await compared(f) is None
        assert f.counts.pages == 0


async def test_a_bad_email_among_the_changes(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        synced_at = f.writer.state().synced_at
        f.quirks.email_overrides = {"Mnew": {"receivedAt": None}}
        f.account.add_email(message(900), ["P0"], email_id="Mnew")
        f.account.add_email(message(901), ["P0"], email_id="Mgood")
        assert await f.update()
        [bad] = f.writer.bad_emails()
        assert (bad.id, bad.mailbox_ids) == ("Mnew", ("P0",))
        assert f.writer.state().synced_at > synced_at
        assert "Mgood" in ids_of(f)
        f.counts.reset()
        await f.update(compare=True)
        assert f.counts.pages == 0  # it counts as known
        f.quirks.email_overrides = {}
        assert await f.update()
        assert f.writer.bad_emails() == []
        f.assert_true()


async def test_bad_emails_of_a_new_listing_replace_the_earlier_ones(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path, email_overrides={"M7": {"blobId": None}}) as f:
        await f.update()
        [bad] = f.writer.bad_emails()
        f.quirks.email_overrides["M8"] = {"blobId": None}
        f.account.set_keywords("M2", ["$flagged"])
        f.account.forget_changes()
        await f.update()
        assert [row.id for row in f.writer.bad_emails()] == ["M7", "M8"]
        assert f.writer.bad_emails()[0] == bad
        f.quirks.email_overrides = {}
        await f.update()
        f.assert_true()


def test_a_comparison_names_its_numbers() -> None:
    difference = comparison.Comparison(20, 1, 23, (("P0", 5, 7),), (("P1", 3, 2),))
    assert difference.describe() == "21 of 23 emails; mailbox P0: 5 of 7; mailbox P1: 3 of 2"
    assert difference.differs
    assert not comparison.Comparison(20, 1, 21, (), ()).differs


# --- Numbers that cannot be compared


@pytest.mark.parametrize("refused", [False, True])
async def test_an_account_without_any_numbers_is_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, refused: bool
) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        compared_at = f.writer.state().compared_at
        assert compared_at
        if refused:
            methods = ("Email/query", "Mailbox/get")
            f.quirks.method_faults = [MethodFault(method, count=-1) for method in methods]
        else:
            without_numbers(f)
        with caplog.at_level(logging.WARNING):
            assert await compared(f) is None
        [line] = [record.message for record in caplog.records]
        assert "nothing shows whether mail is lacking: the server " in line
        assert refused == ("serverFail" in line)
        assert f.writer.state().compared_at == compared_at


async def test_without_any_numbers_ids_that_are_not_found_are_forgotten(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path, phantom_ids=["Mghost"]) as f:
        without_numbers(f)
        await f.update()
        assert len(f.writer.bad_emails()) == 1
        f.quirks.phantom_ids = []
        await compared(f)
        assert f.writer.bad_emails() == []
        f.assert_true()


def without_numbers(f: Follower) -> None:
    f.quirks.no_total = True
    f.quirks.odd_values = {box: {"totalEmails": "null"} for box in f.account.mailboxes}


# --- Mailboxes that the server does not describe


UNDESCRIBED = {"P2": {"id": "{}"}}


def in_undescribed_mailbox(account: Account) -> str:
    return next(one.id for one in account.emails.values() if one.mailbox_ids == {"P2"})


async def test_lost_mail_of_an_undescribed_mailbox_comes_back(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path, odd_values=UNDESCRIBED) as f:
        await f.update()
        before = portable(f.shown())
        lose(f, in_undescribed_mailbox(f.account))
        await compared(f)
        assert portable(f.shown()) == before
        assert f.writer.orphaned_emails() == []


async def test_a_bad_email_of_an_undescribed_mailbox_is_shown_when_it_is_good(
    tmp_path: Path,
) -> None:
    account = small_account()
    odd = {in_undescribed_mailbox(account): {"blobId": None}}
    async with followed(account, tmp_path, odd_values=UNDESCRIBED, email_overrides=odd) as f:
        await f.update()
        assert len(f.writer.bad_emails()) == 1
        f.quirks.email_overrides = {}
        assert await f.update()
        assert f.writer.orphaned_emails() == []
        async with following(f.server, tmp_path / "new", f.url) as new:
            await new.update()
            assert portable(f.shown()) == portable(new.shown())
