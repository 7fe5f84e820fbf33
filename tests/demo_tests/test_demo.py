"""`scripts/demo` shows what it promises, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

DEMO = Path(__file__).parents[2] / "scripts/demo"
SECONDS = 120


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "JMAPFS_PYTHON": sys.executable, "TMPDIR": str(directory)}


def demo(directory: Path, *arguments: str) -> str:
    """Run the demo with its files in `directory`, and return what it prints."""
    result = subprocess.run(
        [DEMO, *arguments],
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout.decode() + result.stderr.decode()
    assert not result.stderr
    # Mail has CRLF.
    return result.stdout.decode().replace("\r\n", "\n")


def matching_lines(output: str, line: str) -> list[str]:
    """Return the matches of a pattern for whole lines."""
    return re.findall(f"^{line}$", output, re.MULTILINE)


def remaining_files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_demo_shows_the_mail_and_leaves_nothing(tmp_path: Path) -> None:
    output = demo(tmp_path)
    assert matching_lines(output, r"\$ (\w+ ?\w*).*") == [
        "jmapfs mount",
        "find mail",
        "ls ",
        "grep ",
        "cat mail",
        "rsync ",
        "rsync ",
        "jmapfs snapshot",
        "jmapfs snapshot",
        "cd snapshots",
        "jmapfs verify",
        "jmapfs status",
        "jmapfs umount",
    ]
    assert "\nmail/Work/Clients/Été\n" in output
    assert matching_lines(output, r"-r-------- .*_Mei-Ng_Sunday-at-Jonas-s-new-flat_\w+\.eml")
    assert matching_lines(output, r"mail/.+\.eml:Subject: Re-reading Middlemarch")
    assert "\nSubject: Sunday at Jonas's new flat\n" in output
    first, second = matching_lines(output, r"Number of regular files transferred: (\d+)")
    assert int(first) > 400
    assert second == "0"
    assert matching_lines(output, r".*/snapshots/[0-9TZ-]+: \d+ mails .*, 0 gone, .*")
    assert len(matching_lines(output, r"[0-9TZ-]{18} .* complete .*")) == 2
    assert matching_lines(output, r" *online +yes *")
    assert remaining_files(tmp_path) == []


def test_two_demos_are_kept_until_they_are_ended(tmp_path: Path) -> None:
    ends = []
    for _ in range(2):
        (end,) = matching_lines(
            demo(tmp_path, "--keep"), r"To end it: \S+/scripts/demo (--end \S+)"
        )
        ends.append(end.split())
    assert len(remaining_files(tmp_path)) == 2
    for directory in tmp_path.iterdir():
        assert directory.stat().st_mode & 0o777 == 0o700
        mails = list((directory / "mail/Inbox").glob("*.eml"))
        assert b"Subject:" in mails[0].read_bytes()
    demo(tmp_path, *ends[0])
    assert len(remaining_files(tmp_path)) == 1
    # Without a directory, the command ends all demos.
    demo(tmp_path, "--end")
    assert remaining_files(tmp_path) == []
    demo(tmp_path, "--end")


def test_end_refuses_other_directories(tmp_path: Path) -> None:
    precious = tmp_path / "jmapfs-demo-precious"
    precious.mkdir()
    result = subprocess.run(
        [DEMO, "--end", precious], env=environment(tmp_path), capture_output=True, check=False
    )
    assert result.returncode == 1
    assert b"is not the directory of a kept demo" in result.stderr
    assert precious.is_dir()


@pytest.mark.parametrize("moment", ["A mail server", "$ jmapfs mount", "$ rsync"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, moment: str) -> None:
    process = subprocess.Popen(
        # Bash cannot trap a signal that is ignored when it starts, as in the background of a shell.
        ["env", "--default-signal=INT", DEMO],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with process:
        assert process.stdout
        for line in process.stdout:
            if line.decode().startswith(moment):
                os.killpg(process.pid, signal.SIGINT)
                break
        process.stdout.read()
        assert process.wait(SECONDS) == 130
    assert remaining_files(tmp_path) == []


def test_a_failure_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    # A missing program fails like a Python without the requirements.
    result = subprocess.run(
        [DEMO],
        env={**environment(tmp_path), "JMAPFS_PYTHON": "/nonexistent/python"},
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 1
    assert b"the mail server did not start" in result.stderr
    assert remaining_files(tmp_path) == []
