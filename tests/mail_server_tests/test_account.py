"""The operations that Cyrus and James have in common, checked over JMAP."""

from __future__ import annotations

import socket
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests import corpus
from tests.mail_server.account import MailAccount
from tests.mail_server.server import MailServer

MAIL = b"Subject: x\r\nMessage-ID: <1@example.org>\r\n\r\nx\r\n"


def emails(account: MailAccount) -> list[dict[str, Any]]:
    """Return the emails of an account in the order of receipt."""
    ids = account.email_ids()
    found = account.jmap(("Email/get", {"ids": ids}))[0]["list"]
    return sorted(found, key=lambda email: ids.index(email["id"]))


def mailboxes_of(account: MailAccount) -> list[set[str]]:
    names = {mailbox_id: name for name, mailbox_id in account.mailbox_ids().items()}
    return [{names[one].upper() for one in email["mailboxIds"]} for email in emails(account)]


def test_mail_is_returned_byte_for_byte(mail_account: MailAccount) -> None:
    # More than a page of ids.
    sent = list(corpus.mails(300, big=True))
    assert mail_account.fill("INBOX", sent) == list(range(1, 301))
    ids = mail_account.email_ids()
    (answer,) = mail_account.jmap(
        ("Email/get", {"ids": ids, "properties": ["blobId", "size"]}),
    )
    sizes = {email["id"]: email["size"] for email in answer["list"]}
    blobs = {email["id"]: email["blobId"] for email in answer["list"]}
    assert Counter(sizes.values()) == Counter(map(len, sent))
    assert Counter(mail_account.download(blobs[one]) for one in ids) == Counter(sent)


def test_flags_and_times_of_receipt_are_stored(mail_account: MailAccount) -> None:
    received = datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC)
    mail_account.append("INBOX", MAIL, [r"\Seen", "$Work"], received)
    (email,) = emails(mail_account)
    assert email["receivedAt"] == "2024-02-29T23:59:58Z"
    assert {name.lower() for name in email["keywords"]} == {"$seen", "$work"}
    mail_account.store_flags("INBOX", [1], [r"\Seen"], how="-FLAGS")
    mail_account.store_flags("INBOX", [1], [r"\Flagged"])
    assert "$flagged" in emails(mail_account)[0]["keywords"]
    assert "$seen" not in emails(mail_account)[0]["keywords"]


def test_messages_are_moved_expunged_and_destroyed(mail_account: MailAccount) -> None:
    mail_account.create_mailbox("Été & co/2024")
    uids = mail_account.fill("INBOX", [corpus.varied(MAIL, number) for number in range(4)])
    mail_account.move("INBOX", uids[:1], "Été & co/2024")
    mail_account.expunge("INBOX", uids[1:2])
    assert mailboxes_of(mail_account) == [{"ÉTÉ & CO/2024"}, {"INBOX"}, {"INBOX"}]
    mail_account.destroy(mail_account.email_ids()[:1])
    assert mailboxes_of(mail_account) == [{"INBOX"}, {"INBOX"}]


def test_a_copied_email_is_in_both_mailboxes(mail_account: MailAccount) -> None:
    mail_account.append("INBOX", MAIL)
    mail_account.create_mailbox("Second")
    before = mail_account.email_ids()
    mail_account.copy("INBOX", [1], "Second")
    assert mail_account.email_ids() == before
    assert mailboxes_of(mail_account) == [{"INBOX", "SECOND"}]
    mail_account.expunge("INBOX", [1])
    assert mailboxes_of(mail_account) == [{"SECOND"}]
    assert mail_account.email_ids() == before


def test_mailboxes_are_renamed_and_deleted(mail_account: MailAccount) -> None:
    mail_account.create_mailbox("A")
    mail_account.create_mailbox("A/B")
    before = mail_account.mailbox_ids()
    mail_account.rename_mailbox("A", "Ä")
    after = mail_account.mailbox_ids()
    assert (after["Ä"], after["Ä/B"]) == (before["A"], before["A/B"])
    mail_account.delete_mailbox("Ä/B")
    assert "Ä/B" not in mail_account.mailbox_ids()


def test_accounts_are_separate(mail_server: MailServer) -> None:
    one, other = mail_server.add_user("one"), mail_server.add_user("other")
    one.append("INBOX", MAIL)
    assert len(one.email_ids()) == 1
    assert other.email_ids() == []


def test_a_disconnected_server_keeps_the_mail_and_the_ports(
    private_mail_server: MailServer,
) -> None:
    account = private_mail_server.add_user("alice")
    account.append("INBOX", MAIL)
    before = account.email_ids()
    with account.http() as client:
        client.get(account.url)
        private_mail_server.disconnect()
        with pytest.raises(httpx.TransportError):
            client.get(account.url)
    private_mail_server.reconnect()
    assert account.email_ids() == before


def test_a_paused_server_accepts_connections_without_responding(
    private_mail_server: MailServer,
) -> None:
    account = private_mail_server.add_user("bob")
    private_mail_server.pause()
    with socket.create_connection(("127.0.0.1", account.http_port), 5) as connection:
        connection.settimeout(0.2)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        private_mail_server.resume()
        connection.settimeout(10)
        assert connection.recv(1) == b"H"


def test_a_reset_keeps_the_users_and_removes_the_mail(private_mail_server: MailServer) -> None:
    account = private_mail_server.add_user("carol")
    account.append("INBOX", MAIL)
    private_mail_server.reset()
    assert account.email_ids() == []
    account.append("INBOX", MAIL)
    assert len(account.email_ids()) == 1
