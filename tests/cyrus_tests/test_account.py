"""The operations on an account that James does not have, checked over JMAP."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest

from tests import corpus
from tests.cyrus import Account, Message, RefusedError

PROPERTIES = ["blobId", "size", "receivedAt", "keywords", "mailboxIds"]
MAIL = b"Subject: x\r\nMessage-ID: <1@example.org>\r\n\r\nx\r\n"


def emails(account: Account) -> list[dict[str, Any]]:
    ids = account.email_ids()
    found = account.jmap(("Email/get", {"ids": ids, "properties": PROPERTIES}))[0]["list"]
    order = {email_id: place for place, email_id in enumerate(ids)}
    return sorted(found, key=lambda email: order[email["id"]])


def mailboxes_of(account: Account) -> list[set[str]]:
    names = {mailbox_id: name for name, mailbox_id in account.mailbox_ids().items()}
    return [{names[one] for one in email["mailboxIds"]} for email in emails(account)]


def test_blob_ids_contain_the_sha1(cyrus_account: Account) -> None:
    sent = list(corpus.mails(120))
    cyrus_account.fill("INBOX", sent)
    assert [email["blobId"] for email in emails(cyrus_account)] == [
        "G" + hashlib.sha1(mail, usedforsecurity=False).hexdigest() for mail in sent
    ]


def test_many_messages_are_appended_fast_enough(cyrus_account: Account) -> None:
    mails = list(corpus.mails(600))
    begin = time.perf_counter()
    uids = cyrus_account.fill("INBOX", mails)
    assert uids == list(range(1, 601))
    # Two idle cores reach 2,500 per second, but other tests may use them.
    assert len(mails) / (time.perf_counter() - begin) > 150


def test_an_email_is_added_to_a_mailbox_and_removed(cyrus_account: Account) -> None:
    cyrus_account.append("INBOX", MAIL)
    second = cyrus_account.create_mailbox_by_jmap("Second")
    (email_id,) = cyrus_account.email_ids()
    cyrus_account.add_to_mailbox(email_id, second)
    assert mailboxes_of(cyrus_account) == [{"Inbox", "Second"}]
    assert cyrus_account.email_ids(second) == [email_id]
    cyrus_account.remove_from_mailbox(email_id, cyrus_account.mailbox_ids()["Inbox"])
    assert mailboxes_of(cyrus_account) == [{"Second"}]


def short_ascii(name: str) -> str:
    return ascii(name[:12])


HOSTILE = [".", "..", "-rf", "~root", "$(id)", "x" * 300, "\u202egnp.exe", " ", "a\x85b", "&", "*"]


@pytest.mark.parametrize("name", HOSTILE, ids=short_ascii)
def test_imap_accepts_hostile_mailbox_names(cyrus_account: Account, name: str) -> None:
    cyrus_account.create_mailbox(name)
    cyrus_account.append(name, MAIL)
    assert len(cyrus_account.email_ids(cyrus_account.mailbox_ids()[name])) == 1


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != " "], ids=short_ascii)
def test_jmap_accepts_hostile_mailbox_names(cyrus_account: Account, name: str) -> None:
    assert cyrus_account.create_mailbox_by_jmap(name) == cyrus_account.mailbox_ids()[name]


@pytest.mark.parametrize(
    "name", ["a\x01b", "a\nb", "a|b", "", "é" * 300, "x" * 1000], ids=short_ascii
)
def test_cyrus_refuses_invalid_mailbox_names(cyrus_account: Account, name: str) -> None:
    with pytest.raises(RefusedError):
        cyrus_account.create_mailbox(name)
    with pytest.raises(RefusedError):
        cyrus_account.create_mailbox_by_jmap(name)


def test_only_imap_creates_siblings_equal_under_nfc(cyrus_account: Account) -> None:
    cyrus_account.create_mailbox("\xe9")
    cyrus_account.create_mailbox("e\u0301")
    assert set(cyrus_account.mailbox_ids()) == {"Inbox", "\xe9", "e\u0301"}
    with pytest.raises(RefusedError):
        cyrus_account.create_mailbox_by_jmap("e\u0301")


def test_a_refused_message_is_an_error(cyrus_account: Account) -> None:
    with pytest.raises(Exception, match="NUL"):
        cyrus_account.fill("INBOX", [Message(MAIL), b"Subject: \0\r\n\r\n"])
    assert cyrus_account.email_ids() == []
