"""Servers run concurrently, are stopped, restarted and paused, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.cyrus import Account, Cyrus, RefusedError, running_cyrus
from tests.mail_server import processes
from tests.mail_server.server import running

MAIL = b"Subject: x\r\n\r\nx\r\n"


def test_two_servers_are_independent(cyrus: Cyrus) -> None:
    with running_cyrus() as other:
        assert {cyrus.imap_port, cyrus.http_port}.isdisjoint({other.imap_port, other.http_port})
        account = other.add_user("only-here")
        account.append("INBOX", MAIL)
        assert len(account.email_ids()) == 1
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            cyrus.account("only-here").email_ids()


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.cyrus
def test_a_stopped_server_leaves_nothing(*, paused: bool) -> None:
    # An open session has its own imapd.
    with running_cyrus() as server, server.add_user("alice").imap():
        directory, group = server.config.directory, server.group
        assert group is not None
        assert len(processes.members(group)) >= 3
        if paused:
            server.pause()
        server.stop()
        assert not processes.members(group)
    assert not directory.exists()
    assert server not in running


@pytest.mark.cyrus
def test_a_path_too_long_for_sockets_is_an_error(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 80)
    deep.mkdir()
    with pytest.raises(ValueError, match="too long"), running_cyrus(deep):
        pass
    assert not list(deep.iterdir())


def test_a_wrong_password_gets_401(cyrus: Cyrus, cyrus_account: Account) -> None:
    for name in (cyrus_account.name, "nobody"):
        with cyrus.account(name, "wrong").http() as client:
            response = client.get("/jmap/")
        assert response.status_code == 401
        assert f'Basic realm="{cyrus.config.servername}"' in response.headers["www-authenticate"]


def test_a_refused_call_is_an_error(cyrus_account: Account) -> None:
    with pytest.raises(RefusedError, match="invalidArguments"):
        cyrus_account.jmap(("Email/changes", {"sinceState": "no such state"}))
