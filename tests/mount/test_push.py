"""Push: changes are shown at once, and those that are not pushed are shown soon."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.mails import received_at, text_mail
from tests.mounts import Home, Mounted
from tests.server import ControlClient, ServerProcess, server_process
from tests.waits import wait_until

pytestmark = pytest.mark.mount

# So that whatever is seen was not found by asking now and then.
NEVER = ("--poll-interval", "3600")

# The longer a server is away, the longer are the pauses between attempts, up to 72 s.
RECONNECT_SECONDS = 90


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with server_process("empty") as server:
        server.control.create_mailbox("Inbox", mailbox_id="Inbox")
        deliver(server.control, 0)
        yield server


def deliver(control: ControlClient, number: int) -> str:
    return control.add_email(text_mail(number), ["Inbox"], received_at=received_at(number))


def shown(directory: Path) -> list[bytes]:
    found = []
    for path in sorted(directory.glob("*.eml")):
        # One that went in between is not shown.
        with contextlib.suppress(FileNotFoundError):
            found.append(path.read_bytes())
    return found


def seconds_until(condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    wait_until(condition)
    return time.monotonic() - began


def assert_arrives(control: ControlClient, inbox: Path, *numbers: int) -> float:
    """Deliver the last of these mails; return the seconds until it is shown."""
    deliver(control, numbers[-1])
    expected = [text_mail(number) for number in numbers]
    return seconds_until(lambda: shown(inbox) == expected)


def is_pushed(mount: Mounted) -> bool:
    return mount.status()["push"] is True


def test_pushed_changes_are_shown_at_once(home: Home, server: ServerProcess) -> None:
    with home.mounted(server.url, *NEVER) as mount:
        wait_until(lambda: is_pushed(mount))
        inbox = mount.path / "Inbox"
        assert shown(inbox) == [text_mail(0)]
        seconds = [
            assert_arrives(server.control, inbox, *range(number + 1)) for number in (1, 2, 3)
        ]
        gone = next(one.id for one in server.control.dump().emails if one.subject == "mail 2")
        server.control.destroy_email(gone)
        seconds.append(
            seconds_until(lambda: shown(inbox) == [text_mail(0), text_mail(1), text_mail(3)])
        )
        # Not each of them: the machine may have other things to do.
        assert min(seconds) < 2
        server.control.rename_mailbox("Inbox", "Post")
        post = mount.path / "Post"
        wait_until(post.exists)
        assert not inbox.exists()
        # There is one stream, and no other request while nothing happens.
        before = server.control.counts()
        time.sleep(1)
        after = server.control.counts()
        assert after.http_requests == before.http_requests
        assert after.push_streams == 1


def test_push_for_all_accounts(home: Home, server: ServerProcess) -> None:
    server.control.add_account("Ateam", "Team")
    with closing(server.control.account("Ateam")) as team:
        team.create_mailbox("Inbox", mailbox_id="Inbox")
        with home.mounted(server.url, *NEVER, "--all-accounts") as mount:
            wait_until(lambda: all(one["push"] for one in mount.status()["accounts"]))
            assert_arrives(team, mount.path / "Team" / "Inbox", 1)
            assert_arrives(server.control, mount.path / "alice@example.org" / "Inbox", 0, 2)


@pytest.mark.parametrize("push", ["off", "not-found", "forbidden"])
def test_a_server_without_push_is_polled(home: Home, push: str) -> None:
    with server_process("empty", push=push) as server:
        server.control.create_mailbox("Inbox", mailbox_id="Inbox")
        with home.mounted(server.url, "--poll-interval", "1") as mount:
            for number in (0, 1):
                deliver(server.control, number)
                expected = [text_mail(each) for each in range(number + 1)]
                wait_until(lambda: shown(mount.path / "Inbox") == expected)  # noqa: B023
            status = mount.status()
            assert (status["push"], status["online"], status["error"]) == (False, True, None)
            # It said no, and is believed.
            assert server.control.counts().endpoints["push"] == 1


SHORTER = """
import jmapfs.sync.follower
from jmapfs.jmap.push import PushMethods
jmapfs.sync.follower._POLL_INTERVAL_WITH_PUSH = {poll}
PushMethods.push.__wrapped__.__kwdefaults__["ping"] = {ping}
from jmapfs.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("push", "poll", "ping"),
    [
        # Two pings that do not come: it asks, and connects again.
        ("dies", 3600.0, 1.0),
        # It lives, and says nothing of changes: from time to time it is asked nonetheless.
        ("pings-only", 2.0, 60.0),
    ],
)
def test_push_that_reports_no_changes(home: Home, push: str, poll: float, ping: float) -> None:
    """As with the real times (two minutes of silence, ten to the next question), but shorter."""
    home.program = (sys.executable, "-c", SHORTER.format(poll=poll, ping=ping))
    with server_process("empty", push=push, push_ping=0.5) as server:
        server.control.create_mailbox("Inbox", mailbox_id="Inbox")
        with home.mounted(server.url, "--poll-interval", "1") as mount:
            wait_until(lambda: is_pushed(mount))
            deliver(server.control, 0)
            wait_until(lambda: shown(mount.path / "Inbox") == [text_mail(0)])
            if push == "dies":
                wait_until(lambda: server.control.counts().push_streams > 1)


def test_push_resumes_after_a_restart_of_the_server(home: Home, server: ServerProcess) -> None:
    with home.mounted(server.url, *NEVER) as mount:
        wait_until(lambda: is_pushed(mount))
        assert shown(mount.path / "Inbox") == [text_mail(0)]
        server.restart_on_same_port()
        # Before it is connected again, and nothing tells of it.
        deliver(server.control, 1)
        wait_until(lambda: len(list((mount.path / "Inbox").iterdir())) == 2, RECONNECT_SECONDS)
        wait_until(lambda: is_pushed(mount))
        assert_arrives(server.control, mount.path / "Inbox", 0, 1, 2)
        assert mount.status()["online"] is True


def test_push_resumes_after_a_long_outage(home: Home, server: ServerProcess) -> None:
    with home.mounted(server.url, *NEVER) as mount:
        wait_until(lambda: is_pushed(mount))
        assert shown(mount.path / "Inbox") == [text_mail(0)]
        server.control.save(server._saved)
        server.stop()
        wait_until(lambda: not mount.status()["online"])
        assert mount.status()["push"] is False
        server.restart_on_same_port()
        deliver(server.control, 1)
        wait_until(lambda: len(list((mount.path / "Inbox").iterdir())) == 2, RECONNECT_SECONDS)
        wait_until(lambda: is_pushed(mount))
        assert_arrives(server.control, mount.path / "Inbox", 0, 1, 2)
