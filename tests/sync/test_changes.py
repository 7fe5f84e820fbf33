"""Following an account: the index equals it, and names and inodes stay, with few requests."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from jmapfs.errors import ServerError, TooMuchGoneError
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.changes import Changes, EmailChanges
from jmapfs.jmap.client import Client
from jmapfs.jmap.method_calls import MethodResponse
from jmapfs.jmap.types import Mailbox
from jmapfs.tree.tree import Attributes, Kind
from tests.server import Account, MailServer, MethodFault, running_server
from tests.server.large import large_account
from tests.server.sample import sample_account
from tests.sync.followed_account import (
    Follower,
    followed,
    following,
    message,
    portable,
    small_account,
)

Operation = Callable[[Account], object]


def change_both_ids(account: Account) -> None:
    account.change_email_ids()
    account.change_mailbox_ids()


def a_day_of_work(account: Account) -> None:
    account.add_email(message(90), ["P0"])
    account.copy_email("M0", "P3")
    account.move_email("M5", "P2", "P1")
    account.remove_email("M14", "P0")
    account.set_keywords("M8", ["$seen", "$answered"])
    account.destroy_emails(["M10", "M11"])
    account.create_mailbox("Later", "P1", mailbox_id="P9")
    account.move_email("M12", "P0", "P9")
    account.rename_mailbox("P2", "Customers")
    account.change_email_ids(["M13"])


def swap_names(account: Account) -> None:
    account.rename_mailbox("P0", "Work")
    account.rename_mailbox("P1", "Inbox")


def destroy_all_mailboxes(account: Account) -> None:
    for mailbox_id in list(account.mailboxes):
        account.destroy_mailbox(mailbox_id)


OPERATIONS: dict[str, Operation] = {
    "nothing": lambda _: None,
    "add": lambda account: account.add_email(message(90), ["P0", "P2"], ["$seen"]),
    "add early": lambda account: account.add_email(message(90), ["P0"], (), "1999-12-31T23:59:59Z"),
    "add a twin": lambda account: account.add_email(message(3), ["P0"], (), "2024-03-01T00:03:00Z"),
    "add and destroy": lambda account: account.destroy_email(
        account.add_email(message(90), ["P0"])
    ),
    "copy": lambda account: account.copy_email("M0", "P3"),
    "remove": lambda account: account.remove_email("M14", "P0"),
    "move": lambda account: account.move_email("M1", "P1", "P3"),
    "move a twin": lambda account: account.move_email("M3", "P0", "P3"),
    "move to its twin": lambda account: account.move_email("M4", "P1", "P2"),
    "keywords": lambda account: account.set_keywords("M0", ["$flagged", "My Label", "é"]),
    "no keywords": lambda account: account.set_keywords("M1", []),
    "destroy": lambda account: account.destroy_email("M1"),
    "destroy a twin": lambda account: account.destroy_email("M3"),
    "destroy the other twin": lambda account: account.destroy_email("M4"),
    "destroy all": lambda account: account.destroy_emails(list(account.emails)),
    "create a mailbox": lambda account: account.create_mailbox("New", "P1"),
    "create an equal mailbox": lambda account: account.create_mailbox("work"),
    "rename a mailbox": lambda account: account.rename_mailbox("P1", "Play"),
    "rename to an equal name": lambda account: account.rename_mailbox("P3", "INBOX"),
    "move a mailbox": lambda account: account.move_mailbox("P2", "P3"),
    "move a mailbox into itself": lambda account: account.move_mailbox("P1", "P2"),
    "swap two mailboxes": swap_names,
    "destroy a mailbox": lambda account: account.destroy_mailbox("P2"),
    "destroy a parent": lambda account: account.destroy_mailbox("P1"),
    "destroy an empty mailbox": lambda account: account.destroy_mailbox("P3"),
    "destroy all mailboxes": destroy_all_mailboxes,
    "email ids": lambda account: account.change_email_ids(),
    "some email ids": lambda account: account.change_email_ids(["M3", "M20"]),
    "the ids of twins": lambda account: account.change_email_ids(["M4", "M3"]),
    "mailbox ids": lambda account: account.change_mailbox_ids(),
    "both ids": change_both_ids,
    "all sorts": a_day_of_work,
}

SAME_TREE = {"nothing", "keywords", "no keywords", "add and destroy"} | {
    name for name in OPERATIONS if name.endswith(" ids") or name.startswith("the ids")
}


def by_blob(tree: dict[str, Attributes]) -> dict[str, set[tuple[str, int]]]:
    """Return name and inode of every file, without its directory, by the key in the name."""
    files: dict[str, set[tuple[str, int]]] = {}
    for path, attributes in tree.items():
        if attributes.kind is Kind.FILE:
            name = path.rpartition("/")[2]
            key = name.removesuffix(".eml").rsplit("_", 2)
            stem = "_".join(key[:-1]) if key[-1].isdigit() else "_".join(key)
            files.setdefault(stem, set()).add((stem, attributes.inode))
    return files


@pytest.mark.parametrize(
    ("name", "max_changes"),
    [
        *((name, None) for name in OPERATIONS),
        *((name, 3) for name in OPERATIONS if name.endswith(("ids", "sorts", "mailboxes", "all"))),
        ("all sorts", 1),
    ],
)
async def test_every_operation(tmp_path: Path, name: str, max_changes: int | None) -> None:
    async with followed(small_account(), tmp_path, max_changes=max_changes) as f:
        await f.update()
        before = f.shown()
        states = dict(f.account.states)
        OPERATIONS[name](f.account)
        f.counts.reset()
        changed = await f.update()
        assert f.counts.pages == 0
        if f.account.states != states:
            assert changed
        else:
            assert not changed
        await f.assert_as_if_new()
        after = f.shown()
        if name in SAME_TREE and max_changes is None:
            assert after == before
        elif name in SAME_TREE:
            # Between two steps, an email may have its old and its new id, and a name for each.
            assert portable(after) == portable(before)
        # Mail that still exists has the same inode and name, also in another mailbox.
        files, known = by_blob(after), by_blob(before)
        assert {stem: files[stem] for stem in known if stem in files} == {
            stem: known[stem] for stem in known if stem in files
        }
        if not name.startswith(("destroy", "all sorts")):
            assert known.keys() <= files.keys()
        # A second update has nothing to do.
        f.counts.reset()
        assert not await f.update()
        assert f.counts.http_requests == 1
        assert f.counts.methods == {"Mailbox/changes": 1, "Email/changes": 1, "Email/get": 2}


async def test_only_the_directories_that_changed_look_changed(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        before = f.shown()
        f.account.move_email("M1", "P1", "P3")
        await f.update()
        after = f.shown()
        different = {path for path in before | after if before.get(path) != after.get(path)}
        moved = {path for path in different if path.endswith(".eml")}
        assert different - moved == {"Work", "Empty"}
        assert {path.partition("/")[0] for path in moved} == {"Work", "Empty"}
        f.account.move_email("M1", "P3", "P1")
        await f.update()
        back = f.shown()
        assert portable(back) == portable(before)
        later = {path for path in back if back[path].time_ns > after.get(path, back[path]).time_ns}
        assert later == {"Work", "Empty"}


@pytest.mark.parametrize("make", [sample_account, lambda: large_account(5000)])
async def test_a_small_change_takes_few_requests(
    tmp_path: Path, make: Callable[[], Account]
) -> None:
    async with followed(make(), tmp_path, max_objects_in_get=4096) as f:
        account = f.account
        await f.update()
        inbox, *_, other = account.mailboxes
        email_id = next(iter(account.members[inbox]))
        # Emails beyond the limit of one Email/get are requested separately, before and after the
        # mailboxes.
        parts = -(-len(account.emails) // 4096)
        all_emails = 2 * parts if parts > 1 else 0
        operations: list[tuple[int, Callable[[], object]]] = [
            (1, lambda: None),
            (1, lambda: account.set_keywords(email_id, ["$flagged"])),
            (1, lambda: account.add_email(message(1), [inbox])),
            (1, lambda: account.set_mailboxes(email_id, [other])),
            (1, lambda: account.destroy_email(email_id)),
            (3, lambda: account.create_mailbox("New", inbox)),
            (3, lambda: account.rename_mailbox(inbox, "Renamed")),
            (3 + all_emails, account.change_mailbox_ids),
        ]
        for most, operation in operations:
            operation()
            f.counts.reset()
            await f.update()
            assert f.counts.http_requests <= most
        f.assert_true()


async def test_a_long_chain_of_changes(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path, max_changes=3) as f:
        await f.update()
        for number in range(100, 130):
            f.account.add_email(message(number), ["P3"])
        f.account.change_mailbox_ids()
        f.counts.reset()
        await f.update()
        assert f.counts.methods["Email/changes"] >= (30 + 23) // 3
        await f.assert_as_if_new()


async def test_a_chain_that_changes_email_ids_never_hides_mail(tmp_path: Path) -> None:
    """One step removes the old ids, another adds the new ones: the mail stays in the tree."""
    async with followed(small_account(), tmp_path, max_changes=3) as f:
        await f.update()
        before = set(f.emails_shown())
        f.account.change_email_ids()
        lacking: list[set[str]] = []
        transaction = IndexWriter.transaction

        @contextlib.contextmanager
        def watched(writer: IndexWriter) -> Iterator[None]:
            with transaction(writer):
                yield
            lacking.append(before - set(f.emails_shown()))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(IndexWriter, "transaction", watched)
            await f.update()
        assert len(lacking) > 5
        assert not set().union(*lacking)
        assert set(f.emails_shown()) == before
        await f.assert_as_if_new()


async def test_synced_at_is_before_the_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index has everything from before `synced_at`, perhaps not everything from after it."""
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        changes = Client.changes
        asked: list[float] = []

        async def noted(client: Client, *since: str) -> tuple[Changes, EmailChanges]:
            asked.append(time.time())
            return await changes(client, *since)

        monkeypatch.setattr(Client, "changes", noted)
        f.account.add_email(message(100), ["P3"])
        before = time.time()
        await f.update()
        assert before <= f.writer.state().synced_at <= asked[0]


async def test_a_mailbox_missing_from_one_response_keeps_its_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        before = set(f.emails_shown())
        mailboxes = Client.mailboxes
        left_out: list[Mailbox] = []

        async def incomplete(client: Client) -> tuple[list[Mailbox], str]:
            found, state = await mailboxes(client)
            if not left_out:
                left_out.extend(one for one in found if one.id == "P1")
            else:
                return found, state
            return [one for one in found if one.id != "P1"], state

        monkeypatch.setattr(Client, "mailboxes", incomplete)
        f.account.create_mailbox("Another")
        await f.update()
        assert left_out
        assert set(f.emails_shown()) == before
        await f.assert_as_if_new()


async def test_an_email_reported_as_updated_and_destroyed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        before = set(f.emails_shown())
        decode = Client._decode_changes

        async def both(client: Client, response: MethodResponse) -> Changes:
            changes = await decode(client, response)
            return replace(changes, destroyed=(*changes.destroyed, *changes.updated))

        monkeypatch.setattr(Client, "_decode_changes", both)
        f.account.set_keywords("M3", ["$flagged"])
        await f.update()
        assert set(f.emails_shown()) == before


async def test_an_interrupted_chain_resumes(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path, max_changes=2) as f:
        await f.update()
        for number in range(100, 120):
            f.account.add_email(message(number), ["P3"])
        f.account.destroy_mailbox("P2")
        state = f.writer.state().email_state
        with trio.CancelScope() as scope, cancelling(scope, after=6):
            await f.update()
        assert scope.cancelled_caught
        assert f.writer.state().email_state != state
        assert not f.writer.state().consistent
        f.counts.reset()
        await f.update()
        assert f.counts.methods["Email/changes"] <= 12
        await f.assert_as_if_new()


@contextlib.contextmanager
def cancelling(scope: trio.CancelScope, *, after: int) -> Iterator[None]:
    """Cancel when the client requests changes of emails for the `after`-th time."""
    requests = 1  # `changes`, which requests those of the mailboxes as well
    email_changes = Client.email_changes

    async def counted(self: Client, since: str) -> EmailChanges:
        nonlocal requests
        requests += 1
        if requests > after:
            scope.cancel()
        return await email_changes(self, since)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "email_changes", counted)
        yield


# --- Servers that cannot report changes


def forget_as_cyrus(f: Follower) -> None:
    f.quirks.unknown_state_error = "invalidArguments"
    f.account.forget_changes()


async def test_states_that_alternate_end_in_an_error(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        f.account.destroy_email("M3")
        f.quirks.alternating_states = True
        with pytest.raises(ServerError, match="try again later"):
            await f.update()
        assert len(await f.client.changed_ids(f.account.states["Email"])) == 0
        f.quirks.alternating_states = False
        await f.update()
        await f.assert_as_if_new()


TROUBLE: dict[str, Callable[[Follower], object]] = {
    "has more, it says": lambda f: setattr(f.quirks, "has_more_lies", True),
    "cannot calculate": lambda f: setattr(f.quirks, "cannot_calculate", True),
    "forgets": lambda f: f.account.forget_changes(),
    "forgets, as Cyrus does": forget_as_cyrus,
    "fails": lambda f: f.quirks.method_faults.append(MethodFault("Email/changes")),
    "fails for mailboxes": lambda f: f.quirks.method_faults.append(MethodFault("Mailbox/changes")),
    "fails always": lambda f: f.quirks.method_faults.append(MethodFault("Email/changes", count=-1)),
}


@pytest.mark.parametrize("operation", ["destroy", "all sorts", "both ids", "destroy all mailboxes"])
@pytest.mark.parametrize("trouble", TROUBLE)
async def test_unknown_changes_cause_a_listing(
    tmp_path: Path, trouble: str, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(small_account(), tmp_path, max_objects_in_get=5) as f:
        await f.update()
        before = f.shown()
        OPERATIONS[operation](f.account)
        TROUBLE[trouble](f)
        f.counts.reset()
        with caplog.at_level(logging.INFO, "jmapfs.sync"):
            if operation == "destroy all mailboxes":
                with pytest.raises(TooMuchGoneError):
                    await f.update()
                assert f.shown() == before
                assert await f.update(accept_deletions=True)
            else:
                assert await f.update()
        # One page has all ids.
        assert f.counts.pages == 1
        assert "listing the account again" in caplog.text
        f.assert_true()
        f.quirks.reset()
        await f.assert_as_if_new()
        if operation in SAME_TREE:
            assert f.shown() == before


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_without_changes_there_is_no_listing(tmp_path: Path, trouble: str) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        TROUBLE[trouble](f)
        for _ in range(2):
            f.counts.reset()
            await f.update()
            assert f.counts.pages == 0
            assert f.counts.http_requests <= 4
        await f.assert_as_if_new() if trouble == "forgets" else f.assert_true()


@pytest.mark.parametrize("trouble", ["has more, it says", "cannot calculate"])
async def test_changed_mailboxes_alone_cause_no_listing(tmp_path: Path, trouble: str) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        TROUBLE[trouble](f)
        f.account.create_mailbox("New", "P2")
        f.account.rename_mailbox("P0", "Entry")
        f.account.destroy_mailbox("P3")
        f.counts.reset()
        assert await f.update()
        assert f.counts.pages == 0
        f.assert_true()


@pytest.mark.parametrize("trouble", ["has more, it says", "cannot calculate", "fails always"])
async def test_servers_that_never_report_changes_can_be_listed(
    tmp_path: Path, trouble: str
) -> None:
    async with followed(small_account(), tmp_path) as f:
        TROUBLE[trouble](f)
        await f.update()
        assert f.counts.pages == 1
        f.assert_true()


async def test_an_account_that_changes_during_every_listing_is_an_error(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path, cannot_calculate=True) as f:
        numbers = iter(range(100, 10_000))

        def deliver(account: Account, _page: int) -> None:
            account.add_email(message(next(numbers)), ["P0"])

        f.server.page_hooks.append(deliver)
        with pytest.raises(ServerError, match="changes while it is listed"):
            await f.update()
        assert not f.writer.state().complete


async def test_other_errors_cause_no_listing(tmp_path: Path) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        before = f.shown()
        f.account.destroy_email("M1")
        f.quirks.method_faults.append(MethodFault("Email/changes", "forbidden"))
        f.counts.reset()
        with pytest.raises(ServerError, match="forbidden"):
            await f.update()
        assert f.counts.pages == 0
        assert f.shown() == before


# --- Between two requests


@pytest.mark.parametrize("moment", ["email_changes", "_add_missing", "mailboxes"])
@pytest.mark.parametrize(
    "name",
    [
        *("mailbox ids", "both ids", "email ids", "destroy a parent", "destroy all mailboxes"),
        *("destroy all", "swap two mailboxes", "create a mailbox", "all sorts", "move a mailbox"),
    ],
)
async def test_changes_between_two_requests(
    tmp_path: Path, name: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever changes between two requests, the index is right after the second update."""
    # With few calls in a request, the emails are not requested together with the changes.
    calls = 2 if moment == "_add_missing" else 16
    async with followed(small_account(), tmp_path, max_calls_in_request=calls) as f:
        await f.update()
        f.account.add_email(message(80), ["P3"])
        f.account.create_mailbox("Something")
        f.counts.reset()
        ask = getattr(Client, moment)
        waiting = [OPERATIONS[name]]

        async def asked(self: Client, *arguments: object, **options: object) -> object:
            while waiting:
                waiting.pop()(f.account)
            return await ask(self, *arguments, **options)

        monkeypatch.setattr(Client, moment, asked)
        with watched(f):
            await f.update()
            assert not waiting
            await f.update()
        await f.assert_as_if_new()


# --- Mail is in the tree at every committed state


class Commits:
    """The blobs that have a name after each commit of an index.

    Also the trees of the consistent commits, and of those between two states.
    """

    def __init__(self, follower: Follower) -> None:
        self.seen: list[set[str]] = []
        self.consistent: list[dict[str, Attributes]] = []
        self.between: list[dict[str, Attributes]] = []
        self._follower = follower

    def look(self) -> None:
        writer = self._follower.writer
        consistent = writer.state().consistent
        assert not (consistent and writer.orphaned_emails())
        (self.consistent if consistent else self.between).append(self._follower.shown())
        tree = self._follower.emails_shown()
        self.seen.append({path.rpartition("/")[2].split("_")[3][:8] for path in tree})


@contextlib.contextmanager
def watched(follower: Follower) -> Iterator[Commits]:
    """Look at the tree after every commit, with another reader."""
    commits = Commits(follower)
    transaction = IndexWriter.transaction

    @contextlib.contextmanager
    def looked_at(self: IndexWriter) -> Iterator[None]:
        with transaction(self):
            yield
        commits.look()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IndexWriter, "transaction", looked_at)
        yield commits


def empty_and_destroy(account: Account) -> None:
    for email_id in list(account.members["P1"]):
        account.move_email(email_id, "P1", "P3")
    account.destroy_mailbox("P1")


def empty_into_a_new_one_and_destroy(account: Account) -> None:
    new = account.create_mailbox("Newer")
    for email_id in list(account.members["P1"]):
        account.move_email(email_id, "P1", new)
    account.destroy_mailbox("P1")


MOVES: dict[str, Operation] = {
    "moved, and the mailbox destroyed": empty_and_destroy,
    "moved to a new one, and the mailbox destroyed": empty_into_a_new_one_and_destroy,
    "mailbox ids": lambda account: account.change_mailbox_ids(),
    "a mailbox moves": lambda account: account.move_mailbox("P2", "P3"),
}


@pytest.mark.parametrize(
    ("name", "how", "max_changes"),
    [
        *((name, "changes", None) for name in MOVES),
        *((name, "changes", 1) for name in MOVES),
        *((name, "listing", None) for name in MOVES),
        # Not in a chain of changes: the server's own states then have one without the mail, which
        # is destroyed under its old id and not yet created under the new one.
        ("email ids", "changes", None),
        ("email ids", "listing", None),
    ],
)
async def test_moved_mail_is_in_the_tree_at_every_commit(
    tmp_path: Path, name: str, how: str, max_changes: int | None
) -> None:
    async with followed(
        small_account(), tmp_path, max_changes=max_changes, max_objects_in_get=5
    ) as f:
        await f.update()
        (MOVES | OPERATIONS)[name](f.account)
        if how == "listing":
            f.account.forget_changes()
        with watched(f) as commits:
            commits.look()
            await f.update()
        assert len(commits.seen) > 1
        assert len(commits.seen[0]) == 21  # 23 mails, of which two are copies
        for seen in commits.seen:
            assert seen == commits.seen[0]
        await f.assert_as_if_new()


@pytest.mark.parametrize("how", ["changes", "listing"])
@pytest.mark.parametrize("name", [*MOVES, "email ids"])
async def test_a_state_between_two_is_not_consistent(tmp_path: Path, name: str, how: str) -> None:
    async with followed(small_account(), tmp_path, max_changes=1, max_objects_in_get=5) as f:
        await f.update()
        before = f.shown()
        f.account.add_email(message(200), ["P3"])
        f.account.destroy_emails(list(f.account.emails)[:2])
        (MOVES | OPERATIONS)[name](f.account)
        if how == "listing":
            f.account.forget_changes()
        with watched(f) as commits:
            await f.update()
        after = f.shown()
        # A new listing is applied in one transaction, a chain of changes is not.
        assert how == "listing" or any(tree not in (before, after) for tree in commits.between)
        assert commits.consistent
        for tree in commits.consistent:
            assert tree in (before, after)


# --- Several accounts of one server


async def test_two_accounts_of_one_server_are_independent(tmp_path: Path) -> None:
    first, second = small_account(5), Account("Ateam", "team@example.org")
    box = second.create_mailbox("Rota")
    second.add_email(message(1), [box])
    server = MailServer([first, second])
    async with (
        running_server(server) as url,
        following(server, tmp_path / "first", url, first) as one,
        following(server, tmp_path / "second", url, second) as two,
    ):
        await one.update()
        await two.update()
        one.assert_true()
        two.assert_true()
        second.destroy_email(next(iter(second.emails)))
        assert not await one.update()
        assert await two.update()
        one.assert_true()
        two.assert_true()
