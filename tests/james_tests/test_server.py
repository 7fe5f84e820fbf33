"""A James is started, reset, disconnected and paused, and leaves nothing behind."""

from __future__ import annotations

import pytest

from tests.james import Account, James, running_james
from tests.mail_server import processes
from tests.mail_server.server import running

MAIL = b"Subject: x\r\n\r\nx\r\n"


def test_a_reset_begins_with_the_same_ids_and_other_mail(private_james: James) -> None:
    private_james.reset()
    account = private_james.add_user("alice")
    account.append("INBOX", MAIL)
    assert account.email_ids() == ["1"]
    private_james.reset()
    assert account.email_ids() == []
    account.append("INBOX", b"Subject: y\r\n\r\ny\r\n")
    assert account.email_ids() == ["1"]
    assert account.download("1") == b"Subject: y\r\n\r\ny\r\n"


@pytest.mark.james
def test_a_stopped_server_leaves_nothing() -> None:
    with running_james() as server, server.add_user("alice").imap():
        directory, groups = server.config.directory, server.groups
        assert [len(processes.members(group)) for group in groups] == [1, 1]
        server.pause()
        server.stop()
        assert not any(map(processes.members, groups))
        assert not server.groups
    assert not directory.exists()
    assert server not in running


def test_a_wrong_password_gets_401(james: James, james_account: Account) -> None:
    name = james_account.name.partition("@")[0]
    for user in (name, "nobody"):
        with james.account(user, "wrong").http() as client:
            assert client.get("/jmap/session").status_code == 401
