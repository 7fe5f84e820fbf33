"""The checks of tests/conftest.py and tests/leaks.py, with tests that violate them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CONFTEST = """
import tests.conftest, tests.leaks
tests.leaks._GRACE = 0.5
tests.conftest._no_mounts = tests.conftest.cyrus_server.missing = lambda: None
tests.conftest.james_server.missing = lambda: None
"""


def run(folder: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(test)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    mount\n    cyrus\n    james\n    long\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "pytest.ini", "-rA"]
    return subprocess.run(
        [*command, *options, "test_it.py"],
        cwd=folder,
        # Other plugins are not needed, and their import takes seconds.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


LEAKS = """
import os, socket, subprocess, threading, time
import tests.leaks
KEPT = []

def test_file():
    os.open("/etc/passwd", os.O_RDONLY)

def test_socket():
    KEPT.append(socket.socket())

def test_child():
    KEPT.append(subprocess.Popen(["sleep", "60"]))

# Its parent has ended and it has its own session: only its environment identifies it.
def test_daemon():
    subprocess.run(["sh", "-c", "setsid sleep 61 >/dev/null 2>&1 &"], check=True)

def test_in_time():
    # The tests above reach their short deadline.
    tests.leaks._GRACE = 30
    subprocess.run(["true"], check=True)
    held = socket.socket()
    threading.Thread(target=lambda: (time.sleep(0.1), held.close())).start()

def test_without_leak():
    assert "sleep" not in subprocess.run(["pgrep", "-a", "-P", str(os.getpid())],
        capture_output=True, text=True).stdout
"""


def test_each_leak_fails_its_own_test_only(tmp_path: Path) -> None:
    done = run(tmp_path, LEAKS)
    assert done.returncode == 1, done.stdout
    assert "6 passed, 4 errors" in done.stdout
    reports = re.findall(r"at teardown of (\w+) _+\nthe test left behind\n(.*)\n", done.stdout)
    found = {test: re.sub(r"\d{3,}", "N", leak) for test, leak in reports}
    assert found == {
        "test_file": "open file /etc/passwd",
        "test_socket": "open file socket:[N]",
        "test_child": "process N: sleep 60",
        "test_daemon": "process N: sleep 61",
    }


LEAKED_MOUNT = """
import os, socket, subprocess
def test_it():
    os.mkdir("a mount")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        env = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        command = ["fusermount3", "-o", "ro,fsname=leak", "--", "a mount"]
        subprocess.run(command, env=env, check=True, pass_fds=[theirs.fileno()])
def test_after():
    assert "fsname=leak" not in open("/proc/self/mountinfo", errors="replace").read()
    assert os.listdir("a mount") == []
"""


@pytest.mark.mount
def test_a_leaked_mount_is_detected_and_unmounted(tmp_path: Path) -> None:
    done = run(tmp_path, LEAKED_MOUNT)
    assert done.returncode == 1, done.stdout
    assert f"mount {tmp_path / 'a mount'}\n" in done.stdout
    assert "2 passed, 1 error" in done.stdout


SKIPPED = """
import pytest
@pytest.mark.mount
@pytest.mark.skip(reason="because")
def test_it():
    pass
@pytest.mark.cyrus
def test_in_the_test():
    pytest.skip("not now")
@pytest.mark.mount
@pytest.mark.xfail(reason="known")
def test_xfail():
    assert False
@pytest.mark.skip(reason="neither mount nor cyrus")
def test_other():
    pass
@pytest.mark.long
def test_long():
    pass
"""


def test_long_tests_are_deselected_and_others_may_be_skipped(tmp_path: Path) -> None:
    done = run(tmp_path, SKIPPED)
    assert done.returncode == 0, done.stdout
    assert "3 skipped, 1 deselected, 1 xfailed" in done.stdout


def test_fail_on_skip_fails_skipped_mount_and_cyrus_tests(tmp_path: Path) -> None:
    done = run(tmp_path, SKIPPED, "--fail-on-skip", "--long")
    assert done.returncode == 1
    assert re.search(r"skipped, but --fail-on-skip is set: .*because", done.stdout)
    assert re.search(r"skipped, but --fail-on-skip is set: .*not now", done.stdout)
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error" in done.stdout
