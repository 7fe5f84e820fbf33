"""After any sequence of operations on an account, the index equals the account."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jmapfs.errors import TooMuchGoneError
from tests.server import Account
from tests.sync.followed_account import (
    Follower,
    Held,
    followed,
    held_by_index,
    held_by_server,
    message,
    small_account,
)

KINDS = (
    *("add", "add", "add again", "place", "place", "keywords", "destroy", "destroy some"),
    *("create", "rename", "rename", "nest", "destroy mailbox", "email ids", "some email ids"),
    *("mailbox ids", "forget", "clamp", "no clamp", "look", "look", "look"),
)
NAMES = ("a", "A", "b", "é", "..", "a/b", "")

# An operation, and numbers that choose its objects.
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), *(st.integers(0, 30) for _ in range(3))),
    min_size=1,
    max_size=25,
)


def operate(account: Account, kind: str, a: int, b: int, c: int) -> None:
    """Perform an operation, or nothing if it has no object."""
    emails, boxes = sorted(account.emails), sorted(account.mailboxes)
    email = emails[a % len(emails)] if emails else None
    chosen = {boxes[b % len(boxes)], boxes[c % len(boxes)]} if boxes else set()
    box = min(chosen, default=None)
    when = f"2024-03-01T00:{a % 4:02}:00Z"
    match kind:
        case "add" if chosen:
            account.add_email(message(a, body=str(b)), chosen, ["$seen"], when)
        case "add again" if chosen and email:
            raw = account.blobs.read(account.emails[email].blob_id) or b""
            account.add_email(raw, chosen, (), account.emails[email].received_at)
        case "place" if chosen and email:
            account.set_mailboxes(email, chosen)
        case "keywords" if email:
            account.set_keywords(email, {f"k{b % 3}", f"k{c % 4}"})
        case "destroy" if email:
            account.destroy_email(email)
        case "destroy some":
            account.destroy_emails(emails[b % 5 : c : 2])
        case "create":
            account.create_mailbox(NAMES[a % len(NAMES)], box)
        case "rename" if box:
            account.rename_mailbox(box, NAMES[a % len(NAMES)])
        case "nest" if box:
            account.move_mailbox(box, [*boxes, None, "Pnowhere"][a % (len(boxes) + 2)])
        case "destroy mailbox" if box:
            account.destroy_mailbox(box)
        case "email ids":
            account.change_email_ids()
        case "some email ids":
            account.change_email_ids(emails[b % 3 :: 2])
        case "mailbox ids":
            account.change_mailbox_ids()
        case "forget":
            account.forget_changes()
        case _:
            pass


async def update(f: Follower) -> None:
    """Update the index. If most mail is gone, the tree must stay until that is accepted."""
    before, known = f.shown(), files_of(held_by_index(f.database))
    try:
        await f.update()
    except TooMuchGoneError:
        assert f.shown() == before
        assert 2 * len(known - files_of(held_by_server(f.account))) > len(known)
        await f.update(accept_deletions=True)


def files_of(held: Held) -> set[tuple[str, int]]:
    return {(email.blob_id, email.received_at) for email in held.emails.values()}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.sampled_from(["new", "listed"]))
def test_any_sequence_of_operations(steps: list[tuple[str, int, int, int]], start: str) -> None:
    async def run(directory: Path) -> None:
        async with followed(small_account(8), directory, max_objects_in_get=3) as f:
            if start == "listed":
                await f.update()
            for kind, a, b, c in steps:
                f.quirks.max_changes = {"clamp": a % 3 + 1, "no clamp": None}.get(
                    kind, f.quirks.max_changes
                )
                operate(f.account, kind, a, b, c)
                if kind == "look":
                    await update(f)
                    f.assert_true()
            await update(f)
            await f.assert_as_if_new()

    with tempfile.TemporaryDirectory() as directory:
        trio.run(run, Path(directory))
