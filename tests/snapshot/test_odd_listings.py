"""Servers that list mail in their own ways: the mount and the snapshots have all of it.

Each account is mounted, brought up to date and copied twice, and copied without a mount.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.mails import new_emails, received_at, text_mail
from tests.mounts import Home
from tests.server import ControlClient, server_process
from tests.snapshot.commands import TakenSnapshot, take, tree_of

pytestmark = pytest.mark.mount

MAILS = 30
PAGE = 7

ODD: dict[str, dict[str, Any]] = {
    "an-order-that-moves-between-pages": {"moving_order": True},
    "no-anchors": {"no_anchors": True},
    "no-sort": {"no_sort": True},
    "short-pages": {"short_pages": True},
    "no-total": {"no_total": True, "no_anchors": True},
    "a-date-in-the-year-32547": {
        "email_overrides": {"M4": {"receivedAt": "32547-12-05T15:30:08Z"}}
    },
    "no-blob-get": {"blob_get": False, "push": "not-found", "account_capabilities_null": True},
}


@pytest.mark.parametrize("quirks", ODD.values(), ids=ODD)
def test_mounts_and_snapshots_have_all_mail(quirks: dict[str, Any], tmp_path: Path) -> None:
    with server_process("empty") as server:
        control = server.control
        inbox = control.create_mailbox("Inbox", role="inbox")
        control.reset(
            [text_mail(number) for number in range(MAILS)],
            received_at=[received_at(number) for number in range(MAILS)],
        )
        control.set_quirks(query_limit=PAGE, max_objects_in_get=PAGE, **quirks)
        home = Home(tmp_path / "home", "alice@example.org", "secret")
        with home.mounted(server.url) as mount:
            assert mount.result.stderr == ""
            control.add_emails(new_emails([text_mail(MAILS)], inbox, first=MAILS))
            control.destroy_email("M2")
            mount.sync()
            assert Counter(map(sha256, mount.contents().values())) == stored(control)
            status = mount.status()
            assert (status["online"], status["bad"], status["shortfall"]) == (True, [], None)
            first = take(home, mount.path, tmp_path / "of-mount")
            second = take(home, mount.path, tmp_path / "of-mount")
        other = Home(tmp_path / "other", "alice@example.org", "secret")
        third = take(other, server.url, tmp_path / "of-account")
        fourth = take(other, server.url, tmp_path / "of-account")
        for taken in (first, second, third, fourth):
            assert saved(taken) == stored(control)
            assert tree_of(taken.path) == tree_of(first.path)
        for again in (second, fourth):
            assert (again.summary["fetched"], again.summary["new"]) == (0, 0)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stored(control: ControlClient) -> Counter[str]:
    return Counter(email.sha256 for email in control.dump().emails)


def saved(taken: TakenSnapshot) -> Counter[str]:
    return Counter(digest for digest, _, _ in tree_of(taken.path).values())
