"""A mount of an ordinary user gives its secret to no other process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.server import ServerProcess
from tests.users import ALICE, UserHome, as_user
from tests.waits import wait_until

pytestmark = pytest.mark.mount

SECRETS = {"JMAPFS_PASSWORD": "s3cret-0f-alice", "JMAPFS_TOKEN": "", "WORK_TOKEN": "s3cret-at-work"}


def readable_as_alice(path: str) -> bool:
    """Return whether another process of the same user can read a file."""
    reading = [*as_user(ALICE), "cat", path]
    return subprocess.run(reading, capture_output=True, check=False).returncode == 0


def test_no_child_process_gets_a_secret(alice: UserHome, server: ServerProcess) -> None:
    """A child process gets the environment, but without the secrets of all accounts."""
    server.control.set_credentials(alice.username, SECRETS["JMAPFS_PASSWORD"], None)
    alice.variables |= SECRETS
    programs = alice.directory / "bin"
    programs.mkdir()
    seen = alice.directory / "seen"
    seen.touch(mode=0o666)
    seen.chmod(0o666)
    spy = programs / "spy"
    spy.write_text(f'#!/bin/sh\necho "$0" >>{seen}; env >>{seen}; exec "$@"\n')
    helper = programs / "fusermount3"
    helper.write_text(f'#!/bin/sh\necho "$0" >>{seen}; env >>{seen}; exec /bin/fusermount3 "$@"\n')
    spy.chmod(0o755)
    helper.chmod(0o755)
    config = alice.directory / "config" / "jmapfs"
    config.mkdir()
    (config / "config.toml").write_text(
        f'[home]\nserver = "{server.url}"\nuser = "{alice.username}"\n'
        f'password_command = "{spy} echo {SECRETS["JMAPFS_PASSWORD"]}"\n'
        f'[work]\nserver = "{server.url}"\ntoken_env = "WORK_TOKEN"\n'
    )
    alice.variables["PATH"] = f"{programs}:{os.environ['PATH']}"
    with alice.mounted("home", path=alice.mountpoint()) as mount:
        frozen = alice.run("freeze", mount.path, "--", str(spy), "echo", "frozen")
        assert (frozen.exit_code, frozen.stdout) == (0, "frozen\n"), frozen.stderr
        watch = [*alice.program, "watch", str(mount.path), "--", str(spy), "cat"]
        with subprocess.Popen(watch, env=alice.environment, stderr=subprocess.PIPE) as watching:
            wait_until(lambda: seen.read_text().count("/bin/spy\n") == 3)
            watching.terminate()
        pid = mount.status()["pid"]
        # Not even another process of the user reads the environment or the memory of the daemon.
        for name in ("environ", "maps", "mem"):
            assert not readable_as_alice(f"/proc/{pid}/{name}")
        assert readable_as_alice(f"/proc/{pid}/status")
        limits = Path(f"/proc/{pid}/limits").read_text()
        [core] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[4] == "0"
    text = seen.read_text()
    # The password command, the commands of freeze and watch, and fusermount3 for unmounting.
    assert (text.count("/bin/spy\n"), text.count("/bin/fusermount3\n")) == (3, 1)
    assert "s3cret" not in text
    assert text.count("HOME=") >= 3
