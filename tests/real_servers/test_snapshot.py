"""Snapshots of real mail on a real server: their content, and the cost of the next one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import corpus
from tests.mail_server.account import MailAccount
from tests.mail_server.append import Message
from tests.mounts import command
from tests.snapshot.accounts import (
    Churn,
    arrived_in_one_state,
    by_directory,
    churning,
)
from tests.snapshot.commands import require_whole, take
from tests.stored_mail import START, StoredMail, sha256, store_mails


@pytest.fixture(scope="module")
def stored(new_mail_account: Callable[[], MailAccount]) -> StoredMail:
    """The whole corpus, or its first mails."""
    account = new_mail_account()
    return store_mails(account, corpus.all_mails()[: account.most_mails])


@pytest.fixture
def few(mail_account: MailAccount) -> StoredMail:
    """An account with sixty mails, for tests that change it."""
    return store_mails(mail_account, list(corpus.mails(60)))


def test_every_mail_is_there_byte_for_byte(stored: StoredMail, tmp_path: Path) -> None:
    home = stored.home(tmp_path)
    taken = take(home, stored.account.url, tmp_path / "dest")
    assert by_directory(taken) == stored.digests
    require_whole(taken.path)
    assert (tmp_path / "dest" / "latest").resolve() == taken.path
    # The manifest has the properties that the server reports.
    properties = ["blobId", "threadId", "mailboxIds", "keywords", "receivedAt", "size"]
    ids = stored.account.email_ids()
    emails = {
        email["id"]: email
        for start in range(0, len(ids), 500)
        for email in stored.account.jmap(
            ("Email/get", {"ids": ids[start : start + 500], "properties": properties})
        )[0]["list"]
    }
    lines = [json.loads(line) for line in taken.manifest.splitlines()]
    assert len(lines) == len(emails) == taken.summary["mails"]
    for line in lines:
        email = emails[line["id"]]
        for member in ("blobId", "threadId", "receivedAt", "size"):
            assert line[member] == email[member]
        assert set(line["keywords"]) == set(email["keywords"])
        assert {place["id"] for place in line["mailboxes"]} == set(email["mailboxIds"])
        assert sha256(stored.account.download(line["blobId"])) == line["sha256"]
    order = [(line["receivedAt"], line["blobId"], line["id"]) for line in lines]
    assert order == sorted(order)


def test_a_mail_in_several_mailboxes_is_one_file(stored: StoredMail, tmp_path: Path) -> None:
    taken = take(stored.home(tmp_path), stored.account.url, tmp_path / "dest")
    several = [mail for mail in taken.mails if len(mail.mailboxes) > 1]
    assert len(several) == 3
    for mail in several:
        statuses = [(taken.path / place.file).stat() for place in mail.mailboxes]
        assert {status.st_ino for status in statuses} == {statuses[0].st_ino}
        assert statuses[0].st_nlink == len(mail.mailboxes) == 3


def test_a_copy_of_a_snapshot_passes_verify(stored: StoredMail, tmp_path: Path) -> None:
    home = stored.home(tmp_path)
    taken = take(home, stored.account.url, tmp_path / "dest")
    command("cp", "-a", taken.path, tmp_path / "copy")
    result = home.run("verify", tmp_path / "copy")
    assert result.exit_code == 0, result.stdout + result.stderr


def test_a_second_snapshot_downloads_and_writes_no_content(
    stored: StoredMail, tmp_path: Path
) -> None:
    home = stored.home(tmp_path)
    first = take(home, stored.account.url, tmp_path / "dest")
    second = take(home, stored.account.url, tmp_path / "dest")
    assert second.summary["fetched"] == second.summary["new"] == second.summary["gone"] == 0
    assert first.summary["bytes"] == second.summary["bytes"]
    for mail in second.mails:
        for place in mail.mailboxes:
            one, other = (taken.path / place.file for taken in (first, second))
            assert one.samefile(other)
    assert first.manifest == second.manifest
    require_whole(second.path)


def test_a_snapshot_downloads_only_new_content(few: StoredMail, tmp_path: Path) -> None:
    account, home = few.account, few.home(tmp_path)
    first = take(home, account.url, tmp_path / "dest")
    added = [b"Subject: new %d\r\n\r\nText.\r\n" % number for number in range(10)]
    account.fill("Work", [Message(mail, received=START) for mail in added])
    account.move("INBOX", [4, 5, 6, 7, 8], "Work/Clients")
    account.expunge("Lists/exmh", [1, 2, 3, 4, 5])
    account.store_flags("Été/à la plage", range(1, 11), [r"\Seen"])
    account.store_flags("Work", range(1, 11), [r"\Flagged"])
    second = take(home, account.url, tmp_path / "dest")
    assert second.summary["fetched"] == second.summary["new"] == 10
    assert second.summary["fetched_bytes"] == sum(map(len, added))
    assert second.summary["gone"] == 5
    require_whole(second.path)
    found = by_directory(second)
    assert found["Work"] == few.digests["Work"] + Counter(map(sha256, added))
    assert sum(found["Work/Clients"].values()) == sum(few.digests["Work/Clients"].values()) + 5
    before = {mail.blob_id: first.path / mail.mailboxes[0].file for mail in first.mails}
    for mail in second.mails:
        if mail.blob_id in before:
            assert (second.path / mail.mailboxes[0].file).samefile(before[mail.blob_id])


def test_a_renamed_mailbox_downloads_no_content(few: StoredMail, tmp_path: Path) -> None:
    home = few.home(tmp_path)
    take(home, few.account.url, tmp_path / "dest")
    few.account.rename_mailbox("Lists/exmh", "Old lists")
    second = take(home, few.account.url, tmp_path / "dest")
    assert second.summary["fetched"] == 0
    assert by_directory(second)["Old-lists"] == few.digests["Lists/exmh"]
    assert not (second.path / "mail" / "Lists" / "exmh").exists()


def test_empty_mailboxes_are_directories(few: StoredMail, tmp_path: Path) -> None:
    few.account.create_mailbox("Empty/Also empty")
    taken = take(few.home(tmp_path), few.account.url, tmp_path / "dest")
    assert list((taken.path / "mail" / "Empty" / "Also-empty").iterdir()) == []
    described = json.loads((taken.path / "snapshot.json").read_bytes())
    roles = {mailbox["path"]: mailbox["role"] for mailbox in described["mailboxes"]}
    assert roles[few.account.inbox] == "inbox"
    assert roles["Empty/Also-empty"] is None


def test_a_changing_account_is_copied_at_one_state(few: StoredMail, tmp_path: Path) -> None:
    """Each round adds a mail, then moves one, then destroys one.

    So the state after any step is known: what is in a snapshot tells which step that was, and
    everything in it must agree.
    """
    account, home = few.account, few.home(tmp_path)
    before = churning(account, few.digests)
    first = take(home, account.url, tmp_path / "dest")
    with Churn(account) as churn:
        taken = [first, *(take(home, account.url, tmp_path / "dest") for _ in range(4))]
    assert churn.error is None
    assert churn.rounds > 10
    for one in taken:
        require_whole(one.path)
        arrived = arrived_in_one_state(one, before, account.inbox)
        numbers = {
            int(path.read_bytes().split(b"\r\n\r\n")[1])
            for path in (one.path / "mail").rglob("*_churn-*.eml")
        }
        assert numbers == set(range(arrived))
    assert len({one.manifest for one in taken}) > 2


def test_content_in_the_cache_of_a_mount_is_not_downloaded(few: StoredMail, tmp_path: Path) -> None:
    home = few.home(tmp_path)
    with home.mounted(few.account.url) as mount:
        mount.contents()
    taken = take(home, few.account.url, tmp_path / "dest")
    require_whole(taken.path)
    assert taken.summary["fetched"] == 0
    assert taken.summary["cached"] == taken.summary["new"] > 0
