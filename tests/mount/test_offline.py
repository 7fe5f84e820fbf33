"""Without the server, the tree is shown and cached mail is read; the rest fails soon.

No operation hangs forever, no content is truncated, and no other account is ever shown.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.mails import new_emails, text_mail
from tests.mounts import Home, Mounted, assert_refused, fixed
from tests.server import ControlClient, ServerProcess, Status, server_process
from tests.server.quirks import EndpointName
from tests.waits import wait_until

pytestmark = pytest.mark.mount

# The longest read of uncached mail while the server is known to be unreachable.
AT_ONCE = 5.0

#: How long a program may be kept waiting by one mail that does not come.
READ_DEADLINE = 30.0


@pytest.fixture
def small() -> Iterator[ServerProcess]:
    """The small server with 20 mails: the first ten in Inbox, the others in Work."""
    with server_process("empty") as server:
        for name, numbers in (("Inbox", range(10)), ("Work", range(10, 20))):
            server.control.create_mailbox(name, mailbox_id=name)
            server.control.add_emails(new_emails(map(text_mail, numbers), name, first=numbers[0]))
        yield server


def stop(server: ServerProcess) -> None:
    """Stop it, so that `restart_on_same_port` continues with its state."""
    server.control.save(server._saved)
    server.stop()


def about(mount: Mounted) -> dict[str, Any]:
    """Return what `.jmapfs.json` says now."""
    document: dict[str, Any] = json.loads((mount.path / ".jmapfs.json").read_bytes())
    return document


def online(mount: Mounted) -> bool:
    return about(mount)["online"] is True


def wait_until_online(mount: Mounted) -> None:
    """Wait until it has found its server again by itself."""
    # The longer a server is away, the longer are the pauses between attempts, up to 72 s.
    wait_until(lambda: online(mount), seconds=90)


def read_in(mount: Mounted, directory: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (mount.path / directory).iterdir()}


def names_in(mount: Mounted, directory: str) -> set[str]:
    return {path.name for path in (mount.path / directory).iterdir()}


def assert_unreadable(path: Path, *, within: float = AT_ONCE) -> None:
    """A read fails with EIO, and does so soon."""
    began = time.monotonic()
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
        path.read_bytes()
    assert time.monotonic() - began < within


def assert_says_offline(mount: Mounted, *words: str, before: float) -> None:
    """`.jmapfs.json` and the status say that there is no server, since when, and why."""
    status, described = mount.status(), about(mount)
    assert (status["online"], described["online"]) == (False, False)
    assert status["error"] == described["error"]
    for word in words:
        assert word in described["error"]
    assert status["since"] == described["offline_since"]
    since = datetime.fromisoformat(described["offline_since"]).timestamp()
    assert before - 1 <= since <= time.time()
    shown = mount.home.run("status", mount.path).stdout
    assert f"no, since {status['since']}" in shown
    assert " ".join(status["error"].split()[:3]) in " ".join(shown.split())


def unchanging(mount: Mounted) -> dict[str, tuple[int, ...]]:
    return {path: fixed(status) for path, status in mount.entries().items()}


# --- The server is not there when the mount begins


def test_a_mount_without_its_server(home: Home, small: ServerProcess) -> None:
    with home.mounted(small.url) as mount:
        before, cached = unchanging(mount), read_in(mount, "Inbox")
    # It changes while it is not mounted.
    small.control.add_emails(new_emails([text_mail(20)], "Inbox", first=20))
    stop(small)
    began = time.time()
    with home.mounted(small.url) as mount:
        notice = mount.result.stderr.splitlines()
        assert len(notice) == 1
        assert "offline, showing the last known state" in notice[0]
        assert_says_offline(mount, "127.0.0.1", before=began)
        assert unchanging(mount) == before
        assert read_in(mount, "Inbox") == cached
        for name in sorted(names_in(mount, "Work"))[:3]:
            assert_unreadable(mount.path / "Work" / name)
        refused = home.run("sync", mount.path, seconds=AT_ONCE * 3)
        assert refused.exit_code == 5
        assert len(refused.stderr.splitlines()) == 1

        small.restart_on_same_port()
        assert home.run("sync", mount.path).exit_code == 0
        described = about(mount)
        assert described["online"] is True
        assert not {"offline_since", "error"} & described.keys()
        assert mount.status()["error"] is None
        assert len(names_in(mount, "Inbox")) == 11
        assert sorted(read_in(mount, "Work").values()) == [text_mail(n) for n in range(10, 20)]


def test_a_first_mount_without_its_server_is_refused(home: Home, small: ServerProcess) -> None:
    mountpoint = home.directory / "mnt"
    mountpoint.mkdir()
    small.stop()
    began = time.monotonic()
    result = home.run("mount", small.url, mountpoint)
    assert time.monotonic() - began < READ_DEADLINE
    assert_refused(result, home, 5, "127.0.0.1")
    # It is not known better the second time, when there is an (empty) index.
    assert_refused(home.run("mount", small.url, mountpoint), home, 5, "127.0.0.1")


# --- The server fails while the mount is in use


@dataclass
class Ended:
    """How a program ended, and after how many seconds."""

    exit_code: int
    output: str
    seconds: float


def together(*commands: Sequence[str | Path], seconds: float = 75) -> list[Ended]:
    """Run programs at the same time; fail where one is not done after `seconds`."""
    ended: dict[int, Ended] = {}

    def run(number: int, arguments: Sequence[str | Path]) -> None:
        began = time.monotonic()
        result = subprocess.run(
            [str(argument) for argument in arguments],
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        output = (result.stdout + result.stderr).decode(errors="replace")
        ended[number] = Ended(result.returncode, output, time.monotonic() - began)

    threads = [
        threading.Thread(target=run, args=(number, arguments))
        for number, arguments in enumerate(commands)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ended[number] for number in range(len(commands))]


def assert_tools_cope(
    mount: Mounted, target: Path, cached: dict[str, bytes], uncached: set[str]
) -> None:
    """grep, ls and rsync: the cached mail, errors for the rest, no short file, and no hanging."""
    grep, ls, rsync = together(
        ("grep", "-rl", "^Subject", mount.path),
        ("ls", "-lR", mount.path),
        ("rsync", "-aH", f"{mount.path}/", target),
    )
    assert grep.exit_code == 2
    found = {line for line in grep.output.splitlines() if not line.startswith("grep: ")}
    assert found == {str(mount.path / path) for path in cached}
    assert grep.output.count("Input/output error") == len(uncached)
    # A listing needs no server, even if other requests hang.
    assert ls.exit_code == 0
    assert ls.seconds < AT_ONCE
    assert ls.output.count(".eml\n") == len(cached) + len(uncached)
    assert rsync.exit_code == 23, rsync.output
    copied = {
        str(path.relative_to(target)): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file() and path.name != ".jmapfs.json"
    }
    assert copied == cached


def assert_all_is_well(mount: Mounted, target: Path, expected: Sequence[bytes]) -> None:
    """rsync makes the copy whole."""
    (rsync,) = together(("rsync", "-aH", f"{mount.path}/", target))
    assert rsync.exit_code == 0, rsync.output
    copied = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*.eml")}
    assert copied == mount.contents()
    assert sorted(copied.values()) == sorted(expected)


def test_a_server_that_stops_while_programs_read(
    home: Home, small: ServerProcess, tmp_path: Path
) -> None:
    with home.mounted(small.url) as mount:
        cached = mount.contents()
        small.control.add_emails(
            new_emails(map(text_mail, range(20, 25)), "Inbox", "Work", first=20)
        )
        assert home.run("sync", mount.path).exit_code == 0
        uncached = set(mount.files()) - set(cached)
        assert len(uncached) == 10
        stop(small)
        began = time.time()
        assert_tools_cope(mount, tmp_path / "copy", cached, uncached)
        wait_until(lambda: not online(mount))
        assert_says_offline(mount, "127.0.0.1", before=began - 5)
        for path in sorted(uncached):
            assert_unreadable(mount.path / path)
        small.restart_on_same_port()
        wait_until_online(mount)
        assert_all_is_well(
            mount, tmp_path / "copy", [text_mail(n) for n in (*range(25), *range(20, 25))]
        )


def test_a_server_that_hangs_while_programs_read(
    home: Home, small: ServerProcess, tmp_path: Path
) -> None:
    with home.mounted(small.url) as mount:
        cached = mount.contents()
        # More than the kernel asks for in one READ.
        small.control.add_emails(new_emails([text_mail(20, padding=300_000)], "Inbox", first=20))
        assert home.run("sync", mount.path).exit_code == 0
        (uncached,) = set(mount.files()) - set(cached)
        with copied(home, tmp_path / "other") as other:
            small.pause()
            began = time.monotonic()
            # Another mount starts while the server does not answer.
            starting = threading.Thread(
                target=lambda: results.append(
                    other.run("mount", small.url, other.directory / "mnt", seconds=75)
                )
            )
            results: list[Any] = []
            starting.start()
            assert_tools_cope(mount, tmp_path / "copy", cached, {uncached})
            assert time.monotonic() - began < 2 * READ_DEADLINE
            starting.join()
            assert results[0].exit_code == 0
            assert "offline" in results[0].stderr
            second = Mounted(other, other.directory / "mnt", results[0])
            try:
                assert sorted(second.files()) == sorted(mount.files())
                assert_unreadable(second.path / uncached)
            finally:
                second.clear()
        small.resume()
        assert home.run("sync", mount.path).exit_code == 0
        assert online(mount)
        expected = [*(text_mail(n) for n in range(20)), text_mail(20, padding=300_000)]
        assert_all_is_well(mount, tmp_path / "copy", expected)


@contextmanager
def copied(home: Home, directory: Path) -> Iterator[Home]:
    """Another machine that knows what this one does: a copy of its caches."""
    other = Home(directory, home.username, home.password)
    shutil.copytree(home.cache, other.cache, dirs_exist_ok=True)
    (directory / "mnt").mkdir()
    yield other
    assert "Traceback" not in other.log()


def test_a_changed_password(home: Home, small: ServerProcess) -> None:
    with home.mounted(small.url) as mount:
        cached = read_in(mount, "Inbox")
        uncached = mount.path / "Work" / min(names_in(mount, "Work"))
        small.control.set_credentials(home.username, "another", None)
        began = time.time()
        assert_unreadable(uncached)
        # No sync is needed: the refused read makes the mount reconnect.
        wait_until(lambda: not online(mount))
        again = "sent again at"
        assert_says_offline(mount, "does not accept the credentials", "401", again, before=began)
        refused = home.run("sync", mount.path)
        assert refused.exit_code == 4
        assert "does not accept the credentials" in refused.stderr
        assert home.password not in refused.stderr + home.log() + json.dumps(mount.status())
        assert read_in(mount, "Inbox") == cached
        assert_unreadable(uncached)
        assert len(names_in(mount, "Work")) == 10

        small.control.set_credentials(home.username, home.password, None)
        # The refused secret is not sent again for some minutes, unless the user asks for that.
        requests = mount.status()["http"]["requests"]
        assert_unreadable(uncached)
        time.sleep(3)
        assert mount.status()["http"]["requests"] == requests
        assert "jmapfs sync" in mount.status()["error"]
        assert home.run("sync", mount.path).exit_code == 0
        assert uncached.read_bytes() == text_mail(10)


@pytest.mark.parametrize("way", ["file", "command"])
def test_a_rotated_secret(home: Home, small: ServerProcess, way: str) -> None:
    """The mount goes on with the new secret, and is never offline."""
    secret = home.directory / "secret"
    secret.write_text(home.password)
    secret.chmod(0o600)
    config = home.directory / "config" / "jmapfs" / "config.toml"
    config.parent.mkdir()
    value = secret if way == "file" else f"cat {secret}"
    config.write_text(
        f'[home]\nserver = "{small.url}"\nuser = "{home.username}"\npassword_{way} = "{value}"\n'
    )
    with home.mounted("home") as mount:
        for number, password in enumerate(["second", "third"]):
            secret.write_text(password)
            small.control.set_credentials(home.username, password, None)
            uncached = sorted(names_in(mount, "Work"))[number]
            assert (mount.path / "Work" / uncached).read_bytes()
            assert home.run("sync", mount.path).exit_code == 0
            assert online(mount)
        assert "offline" not in home.log()


def test_a_corrected_password_file(home: Home, small: ServerProcess) -> None:
    """A secret that is corrected in its file ends the pause without the user."""
    secret = home.directory / "secret"
    secret.write_text(home.password)
    secret.chmod(0o600)
    config = home.directory / "config" / "jmapfs" / "config.toml"
    config.parent.mkdir()
    config.write_text(
        f'[home]\nserver = "{small.url}"\nuser = "{home.username}"\npassword_file = "{secret}"\n'
    )
    with home.mounted("home") as mount:
        small.control.set_credentials(home.username, "another", None)
        assert home.run("sync", mount.path).exit_code == 4
        assert not online(mount)
        secret.write_text("another")
        wait_until_online(mount)


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_answers_only_with_errors(
    home: Home, small: ServerProcess, status: int
) -> None:
    with home.mounted(small.url) as mount:
        cached = read_in(mount, "Inbox")
        # A busy server says when to come again; a broken one breaks one thing only.
        places: list[EndpointName] = ["api"] if status == 500 else ["session", "api", "download"]
        after = None if status == 500 else "120"
        quirks = {
            "statuses": [
                Status(place, status, count=-1, detail="Out of ink", retry_after=after)
                for place in places
            ]
        }
        small.control.set_quirks(**quirks)
        small.control.add_emails(new_emails([text_mail(20)], "Inbox", first=20))
        refused = home.run("sync", mount.path)
        assert refused.exit_code in {5, 6}
        assert str(status) in refused.stderr
        assert_says_offline(mount, str(status), "Out of ink", before=0)
        assert read_in(mount, "Inbox") == cached
        assert_unreadable(mount.path / "Work" / min(names_in(mount, "Work")))
        small.control.reset_quirks()
        wait_until_online(mount)
        assert len(names_in(mount, "Inbox")) == 11
        assert sorted(read_in(mount, "Work").values()) == [text_mail(n) for n in range(10, 20)]


def test_push_that_is_limited_stops_nothing(home: Home, small: ServerProcess) -> None:
    """The event stream answers 429 for an hour, from the beginning."""
    limited = Status("push", 429, count=-1, retry_after="3600")
    small.control.set_quirks(statuses=[limited])
    with home.mounted(small.url) as mount:
        assert len(read_in(mount, "Inbox")) == len(names_in(mount, "Inbox"))
        before = len(names_in(mount, "Inbox"))
        small.control.add_emails(new_emails([text_mail(20)], "Inbox", first=20))
        assert home.run("sync", mount.path).exit_code == 0
        assert len(read_in(mount, "Inbox")) == before + 1
        status = mount.status()
        assert (status["online"], status["push"], status["waiting"]) == (True, False, None)
        assert status["error"] is None


# --- Another account where ours was


MAIL = "urn:ietf:params:jmap:mail"
CORE = "urn:ietf:params:jmap:core"
SECRET = b"From: eve@example.org\r\nSubject: somebody else's\r\n\r\nnot for these eyes\r\n"


@pytest.fixture
def other() -> Iterator[ServerProcess]:
    """Another server with another account; `take_place` puts it where ours was.

    It would also answer for the id of our account, which its session does not name.
    """
    with server_process("empty") as other:
        other.control.add_account("Aother", "eve@example.org", is_personal=True)
        with closing(other.control.account("Aother")) as control:
            control.create_mailbox("Inbox", mailbox_id="Inbox")
            control.add_email(SECRET, ["Inbox"])
        capabilities: dict[str, Any] = {MAIL: {}, CORE: {}}
        account = {"name": "eve@example.org", "accountCapabilities": capabilities}
        other.control.set_quirks(
            session_overrides={
                "accounts": {"Aother": account},
                "primaryAccounts": dict.fromkeys(capabilities, "Aother"),
            }
        )
        stop(other)
        yield other


def take_place(other: ServerProcess, place: ServerProcess) -> None:
    """Start a server at the URL of one that was stopped."""
    control = other.control.url.removeprefix(other.url)
    other.control.close()
    other.url = place.url
    other.control = ControlClient(place.url + control)
    other.restart_on_same_port()


def index_files(home: Home) -> dict[str, str]:
    """Return a digest of each file of the index."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.cache.rglob("index*"))
    }


def logical_index(home: Home) -> list[str]:
    """Return what the index says, as another connection sees it."""
    (path,) = home.cache.rglob("index.sqlite")
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())


def assert_nothing_of_the_other(home: Home) -> None:
    for path in home.cache.rglob("*"):
        if path.is_file():
            assert b"not for these eyes" not in path.read_bytes()


def test_an_index_of_another_account_is_refused(
    home: Home, small: ServerProcess, other: ServerProcess
) -> None:
    with home.mounted(small.url) as mount:
        read_in(mount, "Inbox")
    before = index_files(home)
    assert before
    small.stop()
    take_place(other, small)
    result = home.run("mount", small.url, home.directory / "mnt")
    assert_refused(result, home, 3, "belongs to account Aprimary", "Aother", "--cache-dir")
    assert other.control.counts().methods == {}
    assert index_files(home) == before
    assert_nothing_of_the_other(home)


def test_an_index_of_another_user_is_refused(home: Home, small: ServerProcess) -> None:
    with home.mounted(small.url) as mount:
        read_in(mount, "Inbox")
    before = index_files(home)
    small.control.set_quirks(session_overrides={"username": "bob@example.org"})
    result = home.run("mount", small.url, home.directory / "mnt")
    assert_refused(
        result, home, 3, f"belongs to account Aprimary of {home.username}", "bob@", "--cache-dir"
    )
    assert index_files(home) == before


def test_another_account_behind_a_mount(
    home: Home, small: ServerProcess, other: ServerProcess
) -> None:
    with home.mounted(small.url) as mount:
        before, cached = unchanging(mount), read_in(mount, "Inbox")
        uncached = sorted(names_in(mount, "Work"))
        index = logical_index(home)
        stop(small)
        take_place(other, small)
        assert home.run("sync", mount.path).exit_code in {3, 5, 6}
        wait_until(lambda: "belongs to account Aprimary" in about(mount).get("error", ""))
        assert_says_offline(mount, "belongs to account Aprimary", "Aother", before=0)
        assert home.run("sync", mount.path).exit_code == 3
        assert unchanging(mount) == before
        assert read_in(mount, "Inbox") == cached
        for name in uncached[:3]:
            assert_unreadable(mount.path / "Work" / name)
        assert other.control.counts().endpoints.get("download", 0) == 0
        assert logical_index(home) == index
        assert_nothing_of_the_other(home)
        other.stop()
        small.restart_on_same_port()
        wait_until_online(mount)
        assert sorted(read_in(mount, "Work").values()) == [text_mail(n) for n in range(10, 20)]


def test_another_user_behind_a_mount(home: Home, small: ServerProcess) -> None:
    """The same session URL and account id, with the mail of another user."""
    with server_process("empty") as other, home.mounted(small.url) as mount:
        other.control.create_mailbox("Inbox", mailbox_id="Inbox")
        other.control.add_email(SECRET, ["Inbox"])
        before, cached = unchanging(mount), read_in(mount, "Inbox")
        uncached = mount.path / "Work" / min(names_in(mount, "Work"))
        index = logical_index(home)
        urls = {
            "apiUrl": other.url + "/jmap/api",
            "downloadUrl": other.url + "/jmap/download/{accountId}/{blobId}/{name}?accept={type}",
            "username": "bob@example.org",
        }
        small.control.set_quirks(session_overrides=urls)
        for _ in range(3):
            home.run("sync", mount.path)
        assert logical_index(home) == index
        assert unchanging(mount) == before
        assert read_in(mount, "Inbox") == cached
        refused = home.run("sync", mount.path)
        assert refused.exit_code == 3
        assert "belongs to account Aprimary" in refused.stderr
        assert_says_offline(mount, "belongs to account Aprimary", "bob@", before=0)
        assert_unreadable(uncached)
        assert logical_index(home) == index
        assert_nothing_of_the_other(home)
        small.control.set_quirks(session_overrides={})
        wait_until_online(mount)
        assert uncached.read_bytes() == text_mail(10)
