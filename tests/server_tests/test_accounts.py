"""The accounts of the server are deterministic, complete and valid JSON."""

from __future__ import annotations

import hashlib

from tests.server import Account
from tests.server.control import dump
from tests.server.headers import parse_header
from tests.server.hostile import hostile_account
from tests.server.large import large_account
from tests.server.sample import sample_account, shared_account

from .jmap_client import connected


def test_the_sample_account_is_deterministic_and_varied() -> None:
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


def test_sizes_and_blob_ids_match_the_bytes() -> None:
    for account in (sample_account(), hostile_account(), large_account(50)):
        for email in account.emails.values():
            raw = account.blobs.read(email.blob_id)
            assert raw is not None
            assert len(raw) == email.size
            assert email.blob_id == "B" + hashlib.sha256(raw).hexdigest()[:32]


async def test_the_hostile_account_is_served() -> None:
    async with connected(hostile_account(), max_objects_in_get=10_000) as client:
        emails = await client.call("Email/get", ids=None)
        assert len(emails["list"]) == len(client.account.emails)
        boxes = (await client.call("Mailbox/get"))["list"]
        names = [box["name"] for box in boxes]
        assert {"a/b", "..", ".", "", "a\x00b", "x" * 300} < set(names)
        assert names.count("twin") > 3
        listed = (await client.call("Email/query", sort=[{"property": "receivedAt"}]))["ids"]
        assert (listed[0], listed[-1]) == ("Mdate0", "Mdate9")
        assert len(await _subjects(client.account)) > 50


async def test_the_large_account_generates_its_mail() -> None:
    account = large_account(1000)
    email = account.emails["M0000123"]
    raw = account.blobs.read(email.blob_id)
    assert raw is not None
    assert account.header(email).properties() == parse_header(raw).properties()
    async with connected(account) as client:
        assert (await client.call("Email/query", calculateTotal=True, limit=1))["total"] == 1000


async def _subjects(account: Account) -> set[str | None]:
    return {account.header(email).subject for email in account.emails.values()}
