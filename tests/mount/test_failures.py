"""Failures before the mount exists: one clear line, a documented exit code, nothing left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cyrus import Cyrus
from tests.mounts import Home, assert_refused
from tests.server import ServerProcess, Status, server_process
from tests.waits import wait_until

pytestmark = pytest.mark.mount

PASSWORD = "wr0ng-and-s3cret"


@pytest.fixture
def mountpoint(home: Home) -> Path:
    path = home.directory / "mnt"
    path.mkdir()
    return path


@pytest.mark.parametrize("options", [[], ["-f"]])
def test_wrong_password(
    home: Home, mountpoint: Path, server: ServerProcess, options: list[str]
) -> None:
    home.password = PASSWORD
    result = home.run("mount", *options, server.url, mountpoint)
    assert_refused(result, home, 4, "does not accept the credentials")


def test_wrong_password_on_cyrus(cyrus: Cyrus, tmp_path: Path) -> None:
    account = cyrus.add_user("somebody")
    home = Home(tmp_path, account.name, PASSWORD)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    assert_refused(home.run("mount", account.url, mountpoint), home, 4)


def test_unreachable_host(home: Home, mountpoint: Path) -> None:
    started = time.monotonic()
    result = home.run("mount", "http://127.0.0.1:9/", mountpoint)
    assert_refused(result, home, 5, "127.0.0.1")
    assert time.monotonic() - started < 30


def test_unknown_host(home: Home, mountpoint: Path) -> None:
    assert_refused(home.run("mount", "nowhere.invalid", mountpoint), home, 5, "nowhere.invalid")


@pytest.mark.parametrize("host", ["example.org", "192.0.2.1", "127.0.0.1.example.org"])
def test_no_secret_goes_unencrypted_over_a_network(home: Home, mountpoint: Path, host: str) -> None:
    result = home.run("mount", f"http://{host}/jmap", mountpoint)
    assert_refused(result, home, 3, "https")


@pytest.mark.parametrize(
    ("quirks", "exit_code", "word"),
    [
        ({"mail_capability": False}, 6, "mail"),
        ({"session_body": "not-json"}, 6, ""),
        ({"session_body": "truncated"}, 6, ""),
        ({"session_body": "wrong-types"}, 6, ""),
        ({"session_body": "html"}, 6, "html"),
        ({"statuses": [Status("session", 500, count=-1)]}, 5, "500"),
        ({"statuses": [Status("api", 500, count=-1)]}, 5, "500"),
        ({"statuses": [Status("session", 403, count=-1, detail="Wrong scope")]}, 4, "Wrong scope"),
        ({"statuses": [Status("api", 302, count=-1, location="http://127.0.0.1:9/")]}, 6, ""),
    ],
)
def test_servers_that_cannot_be_used(
    home: Home, mountpoint: Path, quirks: dict[str, Any], exit_code: int, word: str
) -> None:
    with server_process("empty", **quirks) as server:
        result = home.run("mount", server.url, mountpoint)
        # Either of two codes for a 500: it is the server's error, and nothing came of it.
        expected = {5, 6} if "500" in word else {exit_code}
        assert result.exit_code in expected, result
        assert_refused(result, home, result.exit_code, word)


def test_mountpoints_that_cannot_be_used(home: Home, server: ServerProcess) -> None:
    missing = home.directory / "missing"
    assert_refused(home.run("mount", server.url, missing), home, 7, "does not exist")

    full = home.directory / "full"
    full.mkdir()
    (full / "file").touch()
    assert_refused(home.run("mount", server.url, full), home, 7, "not empty")
    assert_refused(home.run("mount", server.url, full / "file"), home, 7, "not a directory")

    inside = home.cache / "inside"
    inside.mkdir(parents=True)
    assert_refused(home.run("mount", server.url, inside), home, 7, "cache")

    around = home.directory / "around"
    around.mkdir()
    result = home.run("mount", "--cache-dir", around / "cache", server.url, around)
    assert_refused(result, home, 7, "cache")
    assert server.control.counts().http_requests == 0


def test_unknown_options_and_accounts(home: Home, mountpoint: Path) -> None:
    assert_refused(home.run("mount", "-o", "nope", "example.org", mountpoint), home, 2, "nope")
    assert_refused(home.run("mount", "-o", "rw", "example.org", mountpoint), home, 2, "read-only")
    assert_refused(home.run("mount", "nobody", mountpoint), home, 3, "nobody")
    home.username = home.password = ""
    result = home.run("mount", "example.org", mountpoint)
    assert_refused(result, home, 3, "JMAPFS_TOKEN")


def test_an_account_that_the_user_cannot_see(
    home: Home, mountpoint: Path, server: ServerProcess
) -> None:
    result = home.run("mount", "--account", "Nobody's", server.url, mountpoint)
    assert_refused(result, home, 3, "Nobody's", "alice@example.org")


def test_nothing_is_mounted(home: Home, mountpoint: Path) -> None:
    for command in ("umount", "status"):
        assert_refused(home.run(command, mountpoint), home, 10, "not mounted")
    assert home.run("status").exit_code == 0


_WITHOUT_ADDRESS = """
from jmapfs.control import socket_server
socket_server.new_address = lambda device: b"\\0" * 200
from jmapfs.cli.main import main
main()
"""


def test_without_a_control_socket_nothing_stays_mounted(
    home: Home, mountpoint: Path, server: ServerProcess
) -> None:
    """The socket is made after the mount. The kernel must not keep a dead mount."""
    home.program = (sys.executable, "-c", _WITHOUT_ADDRESS)
    result = home.run("mount", server.url, mountpoint)
    assert_refused(result, home, 8, "cannot make the control socket")


def test_a_mountpoint_in_use_is_refused(home: Home, server: ServerProcess) -> None:
    with home.mounted(server.url) as mount:
        result = home.run("mount", server.url, mount.path)
        assert result.exit_code == 7
        assert "mounted there already" in result.stderr


def test_a_signal_during_the_listing_leaves_no_mount(home: Home, mountpoint: Path) -> None:
    with server_process("sample", max_objects_in_get=1, request_delay=0.05) as server:
        command = [*home.program, "mount", server.url, str(mountpoint)]
        with subprocess.Popen(
            command, env=home.environment, stderr=subprocess.PIPE, text=True
        ) as process:
            wait_until(lambda: server.control.counts().methods.get("Email/get", 0) >= 5)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert re.fullmatch("\n?jmapfs: interrupted\n", process.stderr.read())
            assert process.wait(timeout=20) == 130
        fetched = server.control.counts().methods["Email/get"]
        assert fetched < 400

        # The next mount continues the listing.
        server.control.set_quirks(max_objects_in_get=500, request_delay=0)
        server.control.reset_counts()
        with home.mounted(server.url) as mount:
            assert len(mount.files()) > 400
        counts = server.control.counts()
        assert counts.pages == 0
        assert counts.methods["Email/get"] < 10
