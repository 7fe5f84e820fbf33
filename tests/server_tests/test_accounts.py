"""The accounts that come with the server: deterministic, complete, and sound as JSON."""

from __future__ import annotations

import hashlib

from tests.server import Account
from tests.server.control import dump
from tests.server.hostile import hostile_account
from tests.server.large import large_account
from tests.server.message import parse_header
from tests.server.sample import sample_account, shared_account

from .speaking import speaking


def test_sample_account() -> None:
    account = sample_account()
    first, second = dump(account), dump(sample_account())
    first.pop("states")
    second.pop("states")
    assert first == second
    assert 380 <= len(account.emails) <= 450
    assert {len(email.mailbox_ids) for email in account.emails.values()} == {1, 2, 3}
    assert {box.role for box in account.mailboxes.values()} > {"inbox", "sent", "drafts", "archive"}
    subjects = {account.header(email).subject for email in account.emails.values()}
    assert {"京都の写真", "Рецепт: борщ", "../../etc/passwd", "", None} < subjects
    assert max(email.size for email in account.emails.values()) > 900_000
    assert len(account.threads) < len(account.emails)
    assert len(shared_account().emails) == 12


def test_blobs_are_the_bytes() -> None:
    for account in (sample_account(), hostile_account(), large_account(50)):
        for email in account.emails.values():
            raw = account.blobs.read(email.blob_id)
            assert raw is not None
            assert len(raw) == email.size
            assert email.blob_id == "B" + hashlib.sha256(raw).hexdigest()[:32]


async def test_hostile_account_goes_over_the_wire() -> None:
    async with speaking(hostile_account(), max_objects_in_get=10_000) as s:
        emails = await s.call("Email/get", ids=None)
        assert len(emails["list"]) == len(s.account.emails)
        boxes = (await s.call("Mailbox/get"))["list"]
        names = [box["name"] for box in boxes]
        assert {"a/b", "..", ".", "", "a\x00b", "x" * 300} < set(names)
        assert names.count("twin") > 3
        listed = (await s.call("Email/query", sort=[{"property": "receivedAt"}]))["ids"]
        assert (listed[0], listed[-1]) == ("Mdate0", "Mdate9")
        assert len(await _subjects(s.account)) > 50


async def test_large_account() -> None:
    account = large_account(1000)
    some = account.emails["M0000123"]
    raw = account.blobs.read(some.blob_id)
    assert raw is not None
    assert account.header(some).properties() == parse_header(raw).properties()
    async with speaking(account) as s:
        assert (await s.call("Email/query", calculateTotal=True, limit=1))["total"] == 1000


async def _subjects(account: Account) -> set[str | None]:
    return {account.header(email).subject for email in account.emails.values()}
