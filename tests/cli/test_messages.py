"""Everything that a command prints on stderr is a message: a line that begins with `jmapfs: `."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from jmapfs.cli.main import cli
from jmapfs.errors import IncompleteError
from tests.mounts import Home, Mounted, Result
from tests.server import ServerProcess
from tests.server.quirks import MethodFault, Status
from tests.snapshot.commands import server_of

MAILS: Final = 12
ODD_MAIL: Final[dict[str, Any]] = {
    "unlisted_ids": ["M3"],
    "email_overrides": {"M4": {"size": "many"}},
    "statuses": [Status("api", 429, count=1, skip=1, retry_after="1")],
}
LIES: Final[dict[str, Any]] = {"lie": "html", "cannot_calculate": True}


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with server_of(MAILS, copied="M3") as server:
        yield server


class _Commands:
    """Runs commands, and checks what each of them prints on stderr."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.used: set[str] = set()

    def run(self, *arguments: str | Path) -> Result:
        result = self.home.run(*arguments)
        self.used.add(str(arguments[0]))
        for line in result.stderr.splitlines():
            assert line.startswith("jmapfs: "), (arguments, result.stderr)
        if result.exit_code:
            assert result.stderr, arguments
        return result


@pytest.mark.mount
def test_each_line_begins_with_the_name_of_the_program(
    server: ServerProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    commands = _Commands(Home(tmp_path, "alice@example.org", "secret"))
    run, control = commands.run, server.control
    url, dest, mount = server.url, tmp_path / "dest", tmp_path / "mnt"
    mount.mkdir()
    control.set_quirks(**ODD_MAIL)
    odd = run("snapshot", "--skip-bad", url, dest)
    assert (odd.exit_code, "M4" in odd.stderr) == (IncompleteError.exit_code, True)
    control.reset_quirks()
    control.set_quirks(odd_values={control.dump().mailbox("Work").id: {"id": "{}"}})
    shutil.rmtree(commands.home.cache)
    odd = run("snapshot", url, dest)
    assert "jmapfs: warning: a mailbox is left out: " in odd.stderr
    first, *_ = run("snapshots", dest).stdout.splitlines()[1].split()
    assert run("verify", "--online", url, dest).stderr
    assert run("diff", dest, first, "latest").stderr
    run("prune", "--keep-last", "1", dest)
    run("accounts", url)
    control.set_quirks(**ODD_MAIL)
    shutil.rmtree(commands.home.cache)
    mounting = run("mount", url, mount)
    request.addfinalizer(Mounted(commands.home, mount, mounting).clear)
    assert "1 mail cannot be shown" in mounting.stderr
    control.set_quirks(**LIES)
    run("sync", mount)
    assert run("prefetch", mount).exit_code
    run("status", mount)
    run("freeze", mount)
    run("thaw", mount)
    assert run("snapshot", mount, dest).exit_code
    assert run("watch", mount / "nothing").exit_code
    run("umount", mount)
    assert commands.used == set(cli.commands)


def test_warnings_of_the_log_are_lines(server: ServerProcess, tmp_path: Path) -> None:
    """A warning tells what nothing else tells. With `--quiet`, only errors are printed."""
    commands = _Commands(Home(tmp_path, "alice@example.org", "secret"))
    url, dest = server.url, tmp_path / "dest"
    server.control.set_quirks(unlisted_ids=["M3"], email_overrides={"M4": {"size": "many"}})
    result = commands.run("snapshot", "--skip-bad", url, dest)
    assert result.exit_code == IncompleteError.exit_code
    # The command itself tells what the snapshot lacks.
    assert "jmapfs: warning: " not in result.stderr
    server.control.reset_quirks()
    [index] = commands.home.cache.rglob("index.sqlite")

    def damage_index() -> None:
        index.write_bytes(b"x" * 8192)

    def refuse_counts() -> None:
        server.control.set_quirks(method_faults=[MethodFault("Email/get", count=-1)])

    for cause, text in (
        (damage_index, "creating a new one"),
        (refuse_counts, "cannot be compared"),
    ):
        cause()
        result = commands.run("snapshot", url, dest)
        assert result.exit_code == 0, result.stderr
        [warning] = [line for line in result.stderr.splitlines() if text in line]
        assert warning.startswith("jmapfs: warning: the ")
        cause()
        result = commands.run("snapshot", "--quiet", url, dest)
        assert (result.exit_code, result.stderr) == (0, "")


def test_a_bug_in_a_library_is_shown_as_lines(home: Home) -> None:
    program = """
import logging, warnings
from jmapfs.cli import log
log.show_warnings()
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("other").exception("a bug in \\x1b[2J")
warnings.warn("old")
log.show_errors_only()
logging.getLogger("jmapfs").warning("hidden")
"""
    home.program = [*home.program[:1], "-c", program]
    lines = home.run().stderr.splitlines()
    assert lines[0] == "jmapfs: error: a bug in \\x1b[2J"
    assert lines[1] == "jmapfs: error:   Traceback (most recent call last):"
    assert "ZeroDivisionError" in "".join(lines)
    assert lines[-1].startswith("jmapfs: warning: ")
    assert all(line.startswith("jmapfs: ") for line in lines)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_removed_working_directory(tmp_path: Path) -> None:
    home, gone = Home(tmp_path / "home", "alice@example.org", "secret"), tmp_path / "gone"
    gone.mkdir()
    home.program = ("sh", "-c", 'cd "$0"; rmdir "$0"; exec "$@"', str(gone), *home.program)
    result = home.run("mount", "localhost", "mail")
    assert result.exit_code == 2
    assert "jmapfs: the working directory was removed: change to another\n" in result.stderr
    assert "Traceback" not in result.stderr
