"""`jmapfs verify`: its output, exit codes and record."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from jmapfs.cli import verify_command as cli_verifying
from jmapfs.cli.verify_command import verify_command
from jmapfs.errors import JmapfsError, StorageError
from jmapfs.snapshot.manifest import SavedMail, SavedPlace
from jmapfs.snapshot.verify_record import VerificationRecord
from tests.snapshot.handmade import Letter, make_snapshot
from tests.snapshot.verification import DATE, LETTERS, flip, new_snapshot, write_snapshot
from tests.waits import wait_until

EARLIER = "2026-11-21T010203Z"
PROGRAM = "import sys; sys.modules['pyfuse3'] = None; from jmapfs.cli.main import main; main()"


class Outcome:
    """The result of a command: exit code, lines on stdout, error and remarks."""

    def __init__(self, *arguments: str | Path) -> None:
        result = CliRunner().invoke(
            verify_command, list(map(str, arguments)), standalone_mode=False
        )
        error = result.exception
        if error is not None and not isinstance(error, JmapfsError):
            raise error
        self.exit_code = error.exit_code if error else result.exit_code
        self.error = str(error) if error else ""
        self.output = result.stdout
        self.lines = result.stdout.splitlines()
        self.remarks = result.stderr.splitlines()

    @property
    def snapshots(self) -> list[dict[str, Any]]:
        snapshots: list[dict[str, Any]] = json.loads(self.output)["snapshots"]
        return snapshots


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    """Two snapshots that share a file."""
    earlier = make_snapshot(tmp_path, EARLIER, [Letter(1)])
    make_snapshot(tmp_path, DATE, LETTERS, previous=earlier)
    return tmp_path


def on_record(destination: Path, date: str) -> str | None:
    verification = VerificationRecord(destination).find(date)
    return verification.outcome if verification else None


# --- Lines and exit codes


def test_a_good_snapshot_is_recorded(destination: Path) -> None:
    outcome = Outcome(destination / DATE)
    size = sum(len(letter.bytes) for letter in LETTERS)
    assert outcome.lines == [f"{DATE}: 3 mails in 5 files, {size} B read: no differences"]
    assert (outcome.exit_code, outcome.remarks) == (0, [])
    assert (on_record(destination, DATE), on_record(destination, EARLIER)) == ("good", None)


def test_all_snapshots_of_a_repository_are_verified(destination: Path) -> None:
    outcome = Outcome(destination)
    size = sum(len(letter.bytes) for letter in LETTERS)
    assert outcome.lines == [f"2 snapshots: 4 mails in 6 files, {size} B read: no differences"]
    assert outcome.exit_code == 0
    assert (on_record(destination, DATE), on_record(destination, EARLIER)) == ("good", "good")


def test_each_finding_is_a_line(destination: Path) -> None:
    flip(destination / DATE / "mail/Inbox/0002.eml")
    (destination / DATE / "mail/Work/Clients/0003.eml").unlink()
    (destination / DATE / "note").touch()
    outcome = Outcome(destination)
    *lines, summary = outcome.lines
    assert lines == [
        f"altered  {DATE}/mail/Inbox/0002.eml: has other content",
        f"altered  {DATE}/mail/Work/0002.eml: has other content",
        f"altered  {DATE}/mail/Work/Clients/0002.eml: has other content",
        f"missing  {DATE}/mail/Work/Clients/0003.eml: does not exist",
        f"extra    {DATE}/note: is a file that does not belong to the snapshot",
    ]
    assert summary.endswith(": 3 altered, 1 missing, 1 extra")
    assert outcome.error == f"{DATE}: 3 altered, 1 missing, 1 extra of 5 files"
    assert outcome.exit_code == 11
    assert (on_record(destination, DATE), on_record(destination, EARLIER)) == ("altered", "good")


def test_the_exit_code_is_that_of_the_worst_finding(destination: Path) -> None:
    (destination / EARLIER / "note").touch()
    outcome = Outcome(destination)
    assert (outcome.exit_code, on_record(destination, EARLIER)) == (13, "extra")
    (destination / DATE / "mail/Work/0002.eml").unlink()
    outcome = Outcome(destination)
    assert (outcome.exit_code, on_record(destination, DATE)) == (12, "missing")
    assert outcome.error == "2 snapshots: 0 altered, 1 missing, 1 extra of 6 files"
    # A file of both snapshots.
    flip(destination / DATE / "mail/Inbox/0001.eml")
    outcome = Outcome(destination)
    assert (outcome.exit_code, on_record(destination, EARLIER)) == (11, "altered")
    assert outcome.error == "2 snapshots: 2 altered, 1 missing, 1 extra of 6 files"


def test_hostile_names_are_escaped(destination: Path) -> None:
    (destination / DATE / "a\x1b[31m\nb\u202e").touch()
    (destination / DATE / os.fsdecode(b"\xff")).touch()
    (destination / DATE / "Grüße ✉").touch()
    outcome = Outcome("--quiet", destination)
    named = sorted(line.removesuffix(": is a file that does not belong to the snapshot")
                   for line in outcome.lines)  # fmt: skip
    assert named == [
        f"extra    {DATE}/Grüße ✉",
        rf"extra    {DATE}/\udcff",
        rf"extra    {DATE}/a\x1b[31m\nb\u202e",
    ]
    assert [one["path"] for one in Outcome("--json", destination).snapshots[1]["findings"]] == [
        "Grüße ✉", r"a\x1b[31m\nb\u202e", r"\udcff",
    ]  # fmt: skip


def test_quiet_prints_findings_only(destination: Path) -> None:
    outcome = Outcome("--quiet", destination)
    assert (outcome.exit_code, outcome.output, outcome.remarks) == (0, "", [])
    (destination / DATE / "mail/Inbox/0001.eml").unlink()
    outcome = Outcome("--quiet", destination)
    assert outcome.lines == [f"missing  {DATE}/mail/Inbox/0001.eml: does not exist"]
    assert (outcome.exit_code, outcome.remarks) == (12, [])


def test_json(destination: Path) -> None:
    flip(destination / DATE / "mail/Work/Clients/0003.eml")
    outcome = Outcome("--json", destination)
    assert outcome.exit_code == 11
    earlier, last = outcome.snapshots
    assert (earlier["outcome"], earlier["findings"]) == ("good", [])
    assert last == {
        "path": str(destination / DATE),
        "outcome": "altered",
        "quick": False,
        "mails": 3,
        "files": 5,
        "bytes_read": sum(len(letter.bytes) for letter in LETTERS[1:]),
        "altered": 1,
        "missing": 0,
        "extra": 0,
        "findings": [
            {
                "kind": "altered",
                "path": "mail/Work/Clients/0003.eml",
                "detail": "has other content",
            }
        ],
        "remarks": [],
    }


def test_a_copy_without_hard_links_gets_a_remark(destination: Path) -> None:
    copy = destination / "elsewhere" / DATE
    copy.parent.mkdir()
    subprocess.run(["cp", "-r", destination / DATE, copy], check=True)
    outcome = Outcome("--quick", copy)
    assert outcome.exit_code == 0
    assert outcome.lines == [f"{DATE}: 3 mails in 5 files, no content read: no differences"]
    (remark,) = outcome.remarks
    assert remark.startswith(f"jmapfs: {DATE}: 1 mail has several files that were hard links")
    assert sorted(path.name for path in copy.parent.iterdir()) == [DATE]


def test_a_result_that_cannot_be_recorded_is_a_remark(destination: Path) -> None:
    (destination / ".jmapfs").touch()
    outcome = Outcome(destination)
    assert outcome.exit_code == 0
    (remark,) = outcome.remarks
    assert "the result cannot be recorded: it is a file" in remark
    (document,) = Outcome("--json", destination / DATE).snapshots
    assert len(document["remarks"]) == 1


def test_a_repository_may_have_any_name(tmp_path: Path) -> None:
    destination = tmp_path / os.fsdecode(b"a\xff\x1b[31m")
    for date in (EARLIER, DATE):
        make_snapshot(destination, date, LETTERS)
    (destination / ".jmapfs").touch()
    shown = rf"{tmp_path}/a\udcff\x1b[31m/"
    (remark,) = Outcome(destination).remarks
    assert remark.startswith(f"jmapfs: {shown}.jmapfs: ")
    documents = Outcome("--json", destination).snapshots
    assert [one["path"] for one in documents] == [f"{shown}{EARLIER}", f"{shown}{DATE}"]
    assert [one["remarks"] for one in documents] == [[remark.removeprefix("jmapfs: ")]] * 2


def test_quick_does_not_clear_damage(destination: Path) -> None:
    flip(destination / DATE / "mail/Inbox/0002.eml")
    assert Outcome(destination).exit_code == 11
    assert Outcome("--quick", destination).exit_code == 0
    assert on_record(destination, DATE) == "altered"
    flip(destination / DATE / "mail/Inbox/0002.eml")
    assert Outcome(destination).exit_code == 0
    assert on_record(destination, DATE) == "good"


def test_a_snapshot_pruned_meanwhile_does_not_stop_the_others(
    destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (destination / ".jmapfs").mkdir()
    began = cli_verifying._Display.started

    def remove_first(self: Any, description: Any) -> None:
        began(self, description)
        if (destination / EARLIER).is_dir():
            shutil.rmtree(destination / EARLIER)

    monkeypatch.setattr(cli_verifying._Display, "started", remove_first)
    outcome = Outcome("--json", destination)
    assert outcome.exit_code == StorageError.exit_code
    assert outcome.error == f"{destination / EARLIER} was removed meanwhile"
    first, last = outcome.snapshots
    assert first == {"path": str(destination / EARLIER), "error": outcome.error}
    assert last["outcome"] == "good"
    assert (on_record(destination, DATE), on_record(destination, EARLIER)) == ("good", None)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], [f"verifying {DATE}", "3/3 mails", "84 B/84 B"]),
        (["--quick"], [f"verifying {DATE}", "3/3 mails"]),
        (["--quiet"], []),
    ],
)
def test_a_terminal_shows_a_bar(
    destination: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], shown: list[str]
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("jmapfs.cli.progress.console", terminal)
    assert Outcome(*options, destination / DATE).exit_code == 0
    assert all(text in screen.getvalue() for text in shown)
    assert bool(screen.getvalue()) == bool(shown)


# --- The real command


def jmapfs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "verify", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_needs_no_fuse(destination: Path) -> None:
    result = jmapfs(destination)
    assert (result.returncode, result.stderr) == (0, "")
    flip(destination / DATE / "mail/Inbox/0002.eml")
    result = jmapfs(f"{destination}/{DATE}/")
    assert result.returncode == 11
    assert len(result.stdout.splitlines()) == 4
    assert result.stderr == f"jmapfs: {DATE}: 3 altered, 0 missing, 0 extra of 5 files\n"
    result = jmapfs(destination / "2001-01-01T000000Z")
    assert result.returncode == 2
    assert result.stderr == f"jmapfs: {destination}/2001-01-01T000000Z: no such directory\n"


def test_ctrl_c_ends_a_long_read(tmp_path: Path) -> None:
    """Ctrl-C during the read of a file that takes minutes."""
    size = 1 << 40
    mail = SavedMail(
        "M1", "B1", "T1", "2026-11-22T01:02:03Z", size, hashlib.sha256(b"").hexdigest(), (),
        (SavedPlace("id", "Inbox", None, "mail/Inbox/1.eml"),),
    )  # fmt: skip
    new_snapshot(tmp_path / "other").rename(tmp_path / EARLIER)
    snapshot = write_snapshot(tmp_path / DATE, [mail], ["Inbox"])
    with (snapshot / "mail/Inbox/1.eml").open("wb") as file:
        file.truncate(size)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "verify", snapshot], stderr=subprocess.PIPE
    ) as process:
        try:
            wait_until(lambda: has_open(process, "mail/Inbox/1.eml"), seconds=30)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, stderr.strip()) == (130, b"jmapfs: interrupted")
    assert on_record(tmp_path, DATE) is None


def has_open(process: subprocess.Popen[bytes], file: str) -> bool:
    """Return whether a process has a file open."""
    assert process.poll() is None
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if link.readlink().match(file):
                return True
    return False
