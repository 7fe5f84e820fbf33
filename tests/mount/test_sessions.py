"""Sessions that are unusual, and servers that ask to wait: mount, sync and two snapshots."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.mails import new_emails, text_mail
from tests.mounts import Home
from tests.relay import Relay
from tests.server import ServerProcess, Status, server_process
from tests.waits import wait_until

pytestmark = pytest.mark.mount

MAIL = "urn:ietf:params:jmap:mail"


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """A server with five mails."""
    with server_process("empty") as server:
        server.control.create_mailbox("Inbox", mailbox_id="Inbox")
        server.control.add_emails(new_emails(map(text_mail, range(5)), "Inbox"))
        yield server


def configure(home: Home, server: ServerProcess, *lines: str) -> None:
    path = home.directory / "config" / "jmapfs" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["[home]", f'server = "{server.url}"', *lines, ""]))


def snapshot(home: Home, destination: Path) -> dict[str, Any]:
    result = home.run("snapshot", "--json", "home", destination)
    assert result.exit_code == 0, result.stderr
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def assert_usable(home: Home, server: ServerProcess) -> None:
    """Mount the account, sync it, and make two snapshots of it."""
    with home.mounted("home") as mount:
        assert sorted(mount.contents().values()) == [text_mail(n) for n in range(5)]
        server.control.add_emails(new_emails([text_mail(5)], "Inbox", first=5))
        assert home.run("sync", mount.path).exit_code == 0
        assert len(mount.files()) == 6
    destination = home.directory / "snapshots"
    first, second = snapshot(home, destination), snapshot(home, destination)
    assert (first["mails"], second["mails"], second["fetched"]) == (6, 6, 0)


@pytest.mark.parametrize("primary", [{}, None, {MAIL: None}, {MAIL: "Aother"}])
def test_a_session_without_a_primary_account(
    home: Home, server: ServerProcess, primary: dict[str, str | None] | None
) -> None:
    configure(home, server)
    server.control.set_quirks(session_overrides={"primaryAccounts": primary})
    listed = json.loads(home.run("accounts", "--json", "home").stdout)
    assert [account["id"] for account in listed] == ["Aprimary"]
    assert_usable(home, server)


def test_accounts_are_listed_if_one_must_be_chosen(
    home: Home, server: ServerProcess, tmp_path: Path
) -> None:
    configure(home, server)
    server.control.add_account("Ateam", "The Team")
    server.control.set_quirks(session_overrides={"primaryAccounts": {}})
    listed = json.loads(home.run("accounts", "--json", "home").stdout)
    assert [account["id"] for account in listed] == ["Ateam", "Aprimary"]
    refused = home.run("snapshot", "home", tmp_path / "snapshots")
    assert refused.exit_code == 3
    assert "choose one" in refused.stderr
    assert "Ateam (The Team)" in refused.stderr


def test_a_session_that_names_an_unreachable_origin(
    home: Home, server: ServerProcess, tmp_path: Path
) -> None:
    urls = {
        "apiUrl": "http://localhost:9/jmap/api",
        "downloadUrl": "http://localhost:9/jmap/download/{accountId}/{blobId}/{name}?accept={type}",
        "eventSourceUrl": "http://localhost:9/jmap/eventsource"
        "?types={types}&closeafter={closeafter}&ping={ping}",
    }
    server.control.set_quirks(session_overrides=urls)
    other = Home(tmp_path / "other", home.username, home.password)
    configure(other, server)
    refused = other.run("snapshot", "home", tmp_path / "snapshots")
    assert refused.exit_code == 5
    assert "the session's apiUrl names localhost:9" in refused.stderr
    assert "rewrite_origin = true" in refused.stderr
    configure(home, server, "rewrite_origin = true")
    assert_usable(home, server)


# --- An API that moves


def move_to(server: ServerProcess, relay: Relay, **overrides: Any) -> str:
    """Let the session name another origin; return the new API URL."""
    origin = f"http://{relay.host}:{relay.port}"
    urls = {
        "apiUrl": f"{origin}/jmap/api",
        "downloadUrl": origin + "/jmap/download/{accountId}/{blobId}/{name}?accept={type}",
        "eventSourceUrl": origin
        + "/jmap/eventsource?types={types}&closeafter={closeafter}&ping={ping}",
    }
    server.control.set_quirks(session_overrides=urls | overrides)
    return urls["apiUrl"]


@pytest.mark.parametrize("way", ["other host", "other port"])
def test_an_api_that_moves(home: Home, server: ServerProcess, way: str) -> None:
    """The mount, the index and the snapshots go on. Nothing is listed or copied again."""
    configure(home, server)
    destination = home.directory / "snapshots"
    port = int(server.url.rpartition(":")[2])
    relay = Relay(port, host="127.0.0.2", port=port) if way == "other host" else Relay(port)
    with ExitStack() as stack, home.mounted("home") as mount:
        stack.enter_context(relay)
        before = mount.contents()
        assert snapshot(home, destination)["mails"] == 5
        server.control.reset_counts()
        time_before = (mount.path / ".jmapfs.json").stat().st_mtime
        api_url = move_to(server, relay)
        server.control.add_emails(new_emails([text_mail(5)], "Inbox", first=5))
        for _ in range(2):
            assert home.run("sync", mount.path).exit_code == 0
        status = mount.status()
        assert (status["online"], status["server"]) == (True, api_url)
        described = mount.path / ".jmapfs.json"
        assert json.loads(described.read_bytes())["server"] == api_url
        # Backup programs find changed files by their time.
        assert described.stat().st_mtime > time_before
        contents = mount.contents()
        assert sorted(contents.values()) == [text_mail(n) for n in range(6)]
        assert before.items() < contents.items()
        assert relay.received > 0
        assert snapshot(home, destination)["mails"] == 6
        result = home.run("snapshot", "--json", mount.path, destination)
        summary = json.loads(result.stdout)
        assert (summary["mails"], summary["fetched"], summary["gone"]) == (6, 0, 0)
        # It moves again, and the old host is gone.
        stack.close()
        assert home.run("sync", mount.path).exit_code == 5
        server.control.set_quirks(session_overrides={})
        assert home.run("sync", mount.path).exit_code == 0
        assert mount.status()["server"] == f"{server.url}/jmap/api"
    with home.mounted("home") as mount:
        assert mount.contents() == contents
    assert snapshot(home, destination)["fetched"] == 0
    assert server.control.counts().blobs.total() == 1
    assert "listing the account again" not in home.log()


def test_a_directory_of_another_user_needs_adopt(home: Home, server: ServerProcess) -> None:
    configure(home, server)
    destination = home.directory / "snapshots"
    snapshot(home, destination)
    server.control.set_quirks(session_overrides={"username": "bob@example.org"})
    other = Home(home.directory / "other", home.username, home.password)
    configure(other, server)
    refused = other.run("snapshot", "home", destination)
    assert refused.exit_code == 3
    assert "--adopt" in refused.stderr
    adopted = other.run("snapshot", "--adopt", "home", destination)
    assert adopted.exit_code == 0
    assert "continues with account" in adopted.stderr
    assert snapshot(other, destination)["fetched"] == 0
    assert other.run("verify", destination).exit_code == 0


# --- Secrets


@pytest.mark.parametrize("way", ["file", "command"])
def test_a_rotated_token(home: Home, server: ServerProcess, way: str) -> None:
    secret = home.directory / "token"
    secret.touch(mode=0o600)

    def rotate(token: str) -> None:
        secret.write_text(token)
        server.control.set_credentials(home.username, None, token)

    rotate("first-token")
    configure(home, server, f'token_{way} = "{secret if way == "file" else f"cat {secret}"}"')
    destination = home.directory / "snapshots"
    with home.mounted("home") as mount:
        rotate("second-token")
        assert len(mount.contents()) == 5
        rotate("third-token")
        assert home.run("sync", mount.path).exit_code == 0
        assert snapshot(home, destination)["mails"] == 5
        rotate("fourth-token")
        result = home.run("snapshot", "--json", mount.path, destination)
        assert (result.exit_code, json.loads(result.stdout)["fetched"]) == (0, 0)
    assert "offline" not in home.log()
    assert not any(f"{word}-token" in home.log() for word in ("first", "second", "third", "fourth"))


def test_a_stale_password(home: Home, server: ServerProcess) -> None:
    """Cached mail can be read and copied. A command sends the secret once, the mount does not."""
    configure(home, server)
    destination = home.directory / "snapshots"
    with home.mounted("home") as mount:
        before = mount.contents()
        server.control.set_credentials(home.username, "another", None)
        assert home.run("sync", mount.path).exit_code == 4
        server.control.reset_counts()
        error = mount.status()["error"]
        assert "does not accept the credentials" in error
        assert "sent again at" in error
        assert mount.contents() == before
        for _ in range(3):
            refused = home.run("snapshot", mount.path, destination)
            assert refused.exit_code == 4
            assert "jmapfs sync" in refused.stderr
        assert server.control.counts().statuses["401"] == 0
        copied = home.run("snapshot", "--allow-stale", "--json", mount.path, destination)
        assert (copied.exit_code, json.loads(copied.stdout)["mails"]) == (0, 5)
        # One request without the secret, one with it.
        refused = home.run("snapshot", "home", destination)
        assert refused.exit_code == 4
        assert "sent again" not in refused.stderr
        assert server.control.counts().statuses["401"] == 2
        server.control.set_credentials(home.username, home.password, None)
        assert home.run("sync", mount.path).exit_code == 0
        assert snapshot(home, destination)["fetched"] == 0


# --- Waiting


def on_terminal(home: Home, *arguments: str | Path) -> tuple[int, str]:
    """Run a command with a terminal as its stderr; return its exit code and what it showed."""
    terminal, end = pty.openpty()
    environment = home.environment | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [*home.program, *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=end,
    )
    os.close(end)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65_536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    return process.wait(30), shown.decode()


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("mount", "session"),
        ("mount", "api"),
        ("accounts", "session"),
        ("snapshot", "api"),
        ("snapshot", "download"),
    ],
)
def test_a_wait_is_shown_on_a_terminal(
    home: Home, server: ServerProcess, command: str, place: Any, tmp_path: Path
) -> None:
    configure(home, server)
    server.control.set_quirks(statuses=[Status(place, 429, retry_after="4")], blob_get=False)
    (tmp_path / "target").mkdir()
    began = time.monotonic()
    try:
        target = [] if command == "accounts" else [tmp_path / "target"]
        exit_code, shown = on_terminal(home, command, "home", *target)
    finally:
        if command == "mount":
            home.run("umount", tmp_path / "target")
    assert exit_code == 0, shown
    assert "asks to wait 4 s" in shown
    assert ("asks to wait 4 s" in home.log()) == (command == "mount")
    assert time.monotonic() - began >= 4


def test_a_wait_of_a_mount_is_shown_on_a_terminal(
    home: Home, server: ServerProcess, tmp_path: Path
) -> None:
    configure(home, server)
    server.control.set_quirks(blob_get=False)
    with home.mounted("home") as mount:
        assert mount.status()["waiting"] is None
        cases: list[tuple[Any, Sequence[str | Path]]] = [
            ("api", ["sync", mount.path]),
            ("download", ["prefetch", mount.path]),
            ("api", ["snapshot", mount.path, tmp_path / "snapshots"]),
        ]
        with ThreadPoolExecutor(1) as thread:
            for place, command in cases:
                # After 3 s, the mount says that it waits. The command asks it once a second.
                server.control.set_quirks(statuses=[Status(place, 429, retry_after="5")])
                running = thread.submit(on_terminal, home, *command)
                if command[0] == "sync":
                    wait_until(lambda: mount.status()["waiting"] is not None)
                    # The status counts down.
                    shown = home.run("status", mount.path).stdout
                    assert re.search(r"asks to wait [1-5] s", shown)
                exit_code, shown = running.result()
                assert exit_code == 0, shown
                assert "asks to wait 5 s" in shown
        assert mount.status()["waiting"] is None


def test_a_wait_is_not_shown_without_a_terminal(
    home: Home, server: ServerProcess, tmp_path: Path
) -> None:
    configure(home, server)
    server.control.set_quirks(statuses=[Status("session", 503, retry_after="4")])
    result = home.run("snapshot", "home", tmp_path / "snapshots")
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_wait_that_is_too_long_is_an_error(
    home: Home, server: ServerProcess, tmp_path: Path
) -> None:
    configure(home, server)
    server.control.set_quirks(statuses=[Status("session", 503, count=-1, retry_after="7200")])
    for arguments in (("snapshot", "home", tmp_path / "snapshots"), ("accounts", "home")):
        result = home.run(*arguments, seconds=20)
        assert result.exit_code == 5
        assert "asks to wait 2 h" in result.stderr
