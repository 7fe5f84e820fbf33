"""Lists of ids on servers of all kinds: limits, answers of any length, changes between pages."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from jmapfs.errors import MethodError, ProtocolError
from jmapfs.jmap import series
from jmapfs.sync.id_listing import list_ids
from tests.jmap.fake import Arguments, FakeServer, RefusedError, opened
from tests.server import Account, MethodFault, PageChange
from tests.sync.followed_account import followed, message, small_account

# Servers without anchors, totals, and sort orders, as far as the specification permits it.
PLAIN: dict[str, Any] = {"no_anchors": True, "no_total": True, "no_sort": True}


@pytest.mark.parametrize("plain", [{}, PLAIN])
@pytest.mark.parametrize(
    "limits",
    [
        {"query_limit": 1},
        {"query_limit": 2},
        {"query_limit": 7},
        {"query_limit": 256},
        {"query_limit": 7, "short_pages": True},
        {"query_limit": 2, "short_pages": True},
        {"accepted_limits": (0, 50), "query_limit": 5},
        {"max_objects_in_get": 1},
    ],
)
@pytest.mark.parametrize("count", [0, 1, 2, 23])
async def test_each_limit_of_a_server_gives_the_whole_account(
    tmp_path: Path, plain: dict[str, Any], limits: dict[str, Any], count: int
) -> None:
    async with followed(small_account(count), tmp_path, **plain, **limits) as f:
        await f.update()
        f.assert_true()
        state = f.writer.state()
        assert state.shortfall is None
        assert state.compared_at > 0


async def test_no_request_has_a_sort_order(tmp_path: Path) -> None:
    """The order of a sorted list moves between its pages, under one query state."""
    async with followed(
        small_account(40), tmp_path, moving_order=True, query_limit=6, max_objects_in_get=6
    ) as f:
        await f.update()
        f.assert_true()
        f.account.set_keywords("M7", ["$flagged"])
        f.account.forget_changes()
        await f.update()
        f.assert_true()
        assert f.counts.sorted_pages == 0


@pytest.mark.parametrize("plain", [{}, PLAIN])
@pytest.mark.parametrize("page", range(2, 8))
async def test_mail_destroyed_between_pages_of_ids_hides_no_other(
    tmp_path: Path, plain: dict[str, Any], page: int
) -> None:
    """Positions move, so the overlap does not match, and the list begins anew."""
    async with followed(small_account(40), tmp_path, query_limit=6, **plain) as f:
        # The list has the newest email first: these are before the position of the page.
        f.quirks.page_changes = [
            PageChange(page, "destroy_emails", {"email_ids": ["M39", "M37", "M12"]}),
            PageChange(page + 1, "add_email", {"raw": "eA==", "mailbox_ids": ["P0"]}),
        ]
        await f.update()
        assert f.quirks.page_changes == []
        await f.assert_as_if_new()
        state = f.writer.state()
        assert (state.shortfall, f.writer.bad_emails()) == (None, [])


@pytest.mark.parametrize("plain", [{}, PLAIN])
async def test_mail_destroyed_before_each_page_hides_no_other(
    tmp_path: Path, plain: dict[str, Any]
) -> None:
    """No attempt to list the ids fits together; nothing is lost all the same."""
    async with followed(
        small_account(120), tmp_path, query_limit=10, max_objects_in_get=10, **plain
    ) as f:
        choice = random.Random(7)

        def expunge(account: Account, _page: int) -> None:
            if len(account.emails) > 60:
                account.destroy_email(choice.choice(sorted(account.emails)))

        f.server.page_hooks.append(expunge)
        await f.update()
        f.assert_true()
        assert len(f.account.emails) < 100
        assert (f.writer.state().shortfall, f.writer.bad_emails()) == (None, [])


async def test_mail_that_arrives_before_each_page(tmp_path: Path) -> None:
    async with followed(small_account(30), tmp_path, query_limit=5, **PLAIN) as f:
        numbers = iter(range(1000, 1040))

        def deliver(account: Account, _page: int) -> None:
            if (number := next(numbers, None)) is not None:
                account.add_email(message(number), ["P0"])

        f.server.page_hooks.append(deliver)
        await f.update()
        await f.update()
        f.assert_true()
        assert f.writer.state().shortfall is None


async def test_an_interrupted_list_of_ids_begins_anew(tmp_path: Path) -> None:
    async with followed(small_account(30), tmp_path, query_limit=5) as f:
        f.quirks.method_faults = [MethodFault("Email/query", "forbidden", skip=2)]
        with pytest.raises(MethodError, match="forbidden"):
            await f.update()
        assert f.writer.listing_progress() is None
        await f.update()
        await f.assert_as_if_new()


# --- Without an index


def server_of(count: int, *, limit: int = 4, total: bool = True) -> FakeServer:
    server = FakeServer(count)
    plain = server.methods["Email/query"]

    def email_query(arguments: Arguments) -> Arguments:
        answer = plain({**arguments, "limit": min(arguments["limit"], limit)})
        if not total:
            answer.pop("total", None)
        return answer

    server.methods["Email/query"] = email_query
    return server


@pytest.mark.parametrize("total", [True, False])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 9, 10])
async def test_all_ids_are_listed_in_order(count: int, limit: int, total: bool) -> None:  # noqa: FBT001 - a parameter of the test
    server = server_of(count, limit=limit, total=total)
    async with opened(server) as client:
        listing = await list_ids(client)
    assert list(listing.ids) == list(server.emails)
    assert listing.is_whole
    assert listing.total == (count if total else None)


async def test_a_list_on_one_page_is_one_request() -> None:
    server = server_of(9, limit=100)
    async with opened(server) as client:
        await list_ids(client)
    assert len(server.requests) == 1


async def test_a_server_that_ignores_positions_is_an_error() -> None:
    server = server_of(10)
    plain = server.methods["Email/query"]
    server.methods["Email/query"] = lambda arguments: plain({**arguments, "position": 0})
    async with opened(server) as client:
        with pytest.raises(ProtocolError, match="the same page again"):
            await list_ids(client)


@pytest.mark.parametrize("count", [1, 10, 12])
@pytest.mark.parametrize("rounds_down", [False, True])
async def test_a_position_after_the_end_may_mean_the_last_page(
    count: int,
    rounds_down: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    server = server_of(count, total=False)
    plain = server.methods["Email/query"]

    def email_query(arguments: Arguments) -> Arguments:
        position = arguments["position"]
        if rounds_down:
            position -= position % 4
        return plain({**arguments, "position": min(position, max(0, count - 4))})

    server.methods["Email/query"] = email_query
    async with opened(server) as client:
        assert set((await list_ids(client)).ids) == set(server.emails)


async def test_a_server_that_returns_the_same_id_again_ends_the_list() -> None:
    server = server_of(10, limit=1)
    plain = server.methods["Email/query"]
    server.methods["Email/query"] = lambda arguments: plain({**arguments, "position": 0})
    async with opened(server) as client:
        # The total says that the others are missing.
        listing = await list_ids(client)
    assert (list(listing.ids), listing.total) == (["M0"], 10)
    assert not listing.agrees


async def test_a_list_that_changes_each_time_is_joined() -> None:
    server = server_of(40, limit=8)
    plain = server.methods["Email/query"]

    def email_query(arguments: Arguments) -> Arguments:
        if arguments["position"]:
            # An email before that position disappears, another one appears at the end.
            [first, *_] = server.emails
            email = server.emails.pop(first)
            server.emails[f"{first}x"] = {**email, "id": f"{first}x"}
        return plain(arguments)

    server.methods["Email/query"] = email_query
    async with opened(server) as client:
        listing = await list_ids(client)
    assert not listing.is_whole
    assert not listing.agrees
    # The later emails are new: the changes name them.
    assert {id_ for id_ in server.emails if "x" not in id_} <= set(listing.ids)


async def test_a_refused_position_is_an_error() -> None:
    server = server_of(40, limit=8)
    plain = server.methods["Email/query"]

    def email_query(arguments: Arguments) -> Arguments:
        if arguments["position"] > 7:
            raise RefusedError("forbidden")
        return plain(arguments)

    server.methods["Email/query"] = email_query
    async with opened(server) as client:
        with pytest.raises(MethodError, match="forbidden"):
            await list_ids(client)


@pytest.mark.parametrize("of_page", [10, 2000])
async def test_a_list_without_end_is_an_error(
    of_page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server invents ids: few for each page, or very many in all."""
    monkeypatch.setattr(series, "_MAX_IDS", 100_000)
    server = FakeServer()

    def email_query(arguments: Arguments) -> Arguments:
        start = arguments["position"]
        return {"ids": [f"X{number}" for number in range(start, start + of_page)]}

    server.methods["Email/query"] = email_query
    async with opened(server) as client:
        with pytest.raises(ProtocolError, match="list of emails has no end"):
            await list_ids(client)
    assert len(server.requests) <= 1010
