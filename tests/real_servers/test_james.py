r"""What only James shows: mail flagged `\Deleted`, and its default configuration."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.james import running_james
from tests.mail_server.account import MailAccount
from tests.mails import list_mails
from tests.mounts import Home
from tests.snapshot.commands import require_whole, take
from tests.waits import wait_until

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("count", [12, 700])
def test_mail_that_is_flagged_as_deleted_is_shown(
    james_account: MailAccount, tmp_path: Path, count: int
) -> None:
    """Email/query leaves it out, but the server counts it and still has it."""
    mails = [b"Subject: %04d\r\n\r\nText.\r\n" % number for number in range(count)]
    james_account.fill("INBOX", mails)
    # Selecting the mailbox changes all its mail: a change of more than 256 emails.
    james_account.store_flags("INBOX", [2, 5, count], [r"\Deleted"])
    assert len(james_account.email_ids()) == count - 3
    home = Home(tmp_path / "home", james_account.name, james_account.password)
    with home.mounted(james_account.url) as mount:
        assert Counter(mount.contents().values()) == Counter(mails)
        assert mount.status()["shortfall"] is None
        james_account.store_flags("INBOX", [7], [r"\Deleted"])
        assert home.run("sync", mount.path).exit_code == 0
        assert len(mount.files()) == count
        # Now it is really gone.
        james_account.expunge("INBOX", [2, 7])
        assert home.run("sync", mount.path).exit_code == 0
        assert len(mount.files()) == count - 2
    taken = take(home, james_account.url, tmp_path / "dest")
    require_whole(taken.path)
    assert len(taken.mails) == count - 2
    assert taken.summary["missing"] == []


@pytest.mark.james
def test_the_default_configuration(tmp_path: Path) -> None:
    """It answers each request with 404 or 401 that does not name the version of RFC 8621."""
    mails = list_mails(0, 30)
    with running_james(jmap_version="draft") as server:
        account = server.add_user("alice")
        account.fill("INBOX", mails)
        with httpx.Client(auth=(account.name, account.password)) as client:
            assert client.get(account.url, follow_redirects=True).status_code == 404
        home = Home(tmp_path / "home", account.name, account.password)
        with home.mounted(account.url, "--poll-interval", "3600") as mount:
            assert Counter(mount.contents().values()) == Counter(mails)
            wait_until(lambda: mount.status()["push"] is True)
            account.append("INBOX", list_mails(30, 1)[0])
            wait_until(lambda: len(mount.files()) == 31)
        taken = take(home, account.url, tmp_path / "dest")
        require_whole(taken.path)
        assert len(taken.mails) == 31
        assert take(home, account.url, tmp_path / "dest").summary["fetched"] == 0
