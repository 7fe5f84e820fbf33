"""Nothing that a command prints controls the terminal, and an output that fails is no bug."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import pytest

from jmapfs.errors import OutputError, ReaderGoneError
from jmapfs.text import is_shown
from tests.mounts import Home, Mounted
from tests.server import ServerProcess, server_process
from tests.snapshot.handmade import Letter, make_snapshot

ROOT: Final = Path(__file__).parents[2]

# Clears the screen, sets the clipboard, begins a link, reverses the direction, looks like markup of
# rich, ends a tag of it that was not begun, would be a picture, and is not UTF-8.
HOSTILE_NAME: Final = (
    "\x1b[2J\x1b]52;c;cm0=\x07\x1b]8;;x:y\x1b\\\x9b31m\n\r\t\u202e\u2066\u2028\x7f[bold]:smile:[red"
)
HOSTILE: Final = f"{HOSTILE_NAME}[/red]\x00"
VERBATIM: Final = ("[bold]:smile:[red", r"\x1b[2J\x1b]52;c;cm0=\x07", r"\x9b31m", r"\u202e")
JSON_VERBATIM: Final = ("[bold]:smile:[red", r"\u001b[2J\u001b]52;c;cm0=\u0007", r"\u202e")

OLD, NEW = "2026-11-22T010203Z", "2026-11-23T010203Z"

# The control sequences of the progress bars: colours, the cursor, and erasing lines.
_OF_RICH: Final = re.compile(r"\x1b\[[0-9;]*[mAK]|\x1b\[[12]K|\x1b\[\?25[lh]|\r")


def require_safe(output: bytes, *, terminal: bool = False) -> str:
    """Check that an output has no control character but line breaks; return it as text."""
    text = output.decode()
    if terminal:
        for sequence in ("\x1b[2J", "\x1b[31m", "\x1b]"):
            assert sequence not in text
        text = _OF_RICH.sub("", text)
    assert [char for char in text if not is_shown(char) and char != "\n"] == [], text
    return text


def run_on_terminal(home: Home, *arguments: str | Path) -> tuple[int, bytes]:
    """Run a command with a terminal as its stdout and stderr."""
    terminal, end = pty.openpty()
    command = [*home.program, *map(str, arguments)]
    environment = home.environment | {"TERM": "xterm-256color", "COLUMNS": "200"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=end, stderr=end
    ) as process:
        os.close(end)
        shown = b""
        try:
            while piece := os.read(terminal, 65_536):
                shown += piece
        except OSError:  # the other end is closed
            pass
    os.close(terminal)
    return process.returncode, shown


class Printed:
    """Runs commands, and checks all that they print."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def __call__(self, *arguments: str | Path, code: int = 0, terminal: bool = False) -> str:
        if terminal:
            exit_code, shown = run_on_terminal(self.home, *arguments)
            text = require_safe(shown, terminal=True)
        else:
            result = subprocess.run(
                [*self.home.program, *map(str, arguments)],
                env=self.home.environment | {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60,
                check=False,
            )
            exit_code = result.returncode
            text = require_safe(result.stdout) + require_safe(result.stderr)
            for line in result.stderr.splitlines():
                assert line.startswith(b"jmapfs: ")
        assert exit_code == code, text
        assert "Traceback" not in text
        return text


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """An account with a hostile name, beside the one of the user."""
    with server_process("empty") as server:
        server.control.add_account("Ahostile", HOSTILE)
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", "alice@example.org", "secret")


@pytest.mark.mount
def test_hostile_names_control_no_terminal(
    home: Home, server: ServerProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Hostile accounts, mailboxes and paths, in all commands; the paths contain `[/red]`."""
    printed = Printed(home)
    place = tmp_path / HOSTILE_NAME / "red]"
    mountpoint = place / os.fsdecode(b"mount\xff")
    mountpoint.parent.mkdir(parents=True)
    mountpoint.mkdir()
    place = place.parent.parent / f"{HOSTILE_NAME}[" / "red]"
    dest = place / "dest"
    place.mkdir(parents=True)

    def has_all(text: str, words: tuple[str, ...] = VERBATIM) -> None:
        for word in words:
            assert word in text

    # --- Before there is a mount
    for terminal in (False, True):
        has_all(printed("accounts", server.url, terminal=terminal))
    has_all(printed("accounts", "--json", server.url), JSON_VERBATIM)
    for command in ("sync", "watch"):
        has_all(printed(command, mountpoint, code=10))
    printed("mount", f"{HOSTILE_NAME}.example", mountpoint, code=3)
    has_all(printed("mount", f"-o{HOSTILE_NAME}", server.url, mountpoint, code=2))
    has_all(
        printed("mount", "--account", HOSTILE_NAME, server.url, mountpoint, code=3), ("]8;;x:y",)
    )
    has_all(printed(f"{HOSTILE_NAME}", code=2))
    printed(f"--{HOSTILE_NAME}", code=2)
    has_all(printed("prune", dest, "--keep-last", HOSTILE_NAME, code=2))

    # --- With a mount
    mounted = printed("mount", "--account", "Ahostile", server.url, mountpoint, terminal=True)
    assert mounted == "" or "listing" in mounted
    home_mount = Mounted(home, mountpoint, home.run())
    request.addfinalizer(home_mount.clear)
    has_all(printed("status"))
    has_all(printed("status", mountpoint, terminal=True))
    shown = printed("status", "--json", mountpoint)
    has_all(shown, JSON_VERBATIM)
    assert json.loads(shown)["account"] == HOSTILE
    described = require_safe((mountpoint / ".jmapfs.json").read_bytes())
    assert json.loads(described)["account"] == HOSTILE
    has_all(printed("thaw", mountpoint, code=2))
    has_all(printed("freeze", mountpoint, "--", HOSTILE_NAME, code=127))
    has_all(printed("snapshot", mountpoint, place / "nothing" / "dest", code=2))
    has_all(printed("snapshot", mountpoint, dest, terminal=True))
    has_all(printed("snapshot", "--json", mountpoint, dest), JSON_VERBATIM)
    printed("prefetch", mountpoint, terminal=True)
    printed("umount", mountpoint)
    for path in (home.directory / "state").rglob("*.log"):
        has_all(require_safe(path.read_bytes()))


def test_hostile_names_in_snapshots_control_no_terminal(home: Home, tmp_path: Path) -> None:
    printed = Printed(home)
    dest = tmp_path / f"{HOSTILE_NAME}[" / "red]"
    old = make_snapshot(dest, OLD, [Letter(1)])
    new = make_snapshot(dest, NEW, [Letter(1), Letter(2, ("\x1b[2J\x9b31m",), ("\x1b[2J",))])
    (old / os.fsdecode(b"\xff" + HOSTILE_NAME.encode())).touch()
    (new / "note").touch()
    for options, words in (((), VERBATIM), (("--json",), ("[bold]:smile:[red",))):
        for arguments, code in (
            (("verify", dest), 13),
            (("snapshots", dest), 0),
            (("prune", dest, "--keep-last", "2", "--dry-run"), 0),
        ):
            shown = printed(*arguments, *options, code=code)
            if arguments[0] == "verify":
                assert all(word in shown for word in words)
    assert r"\x1b[2J" in printed("diff", dest, OLD, NEW)
    assert r"\u001b[2J" in printed("diff", dest, OLD, NEW, "--json")
    assert r"\x9b31m" in printed("verify", dest, code=13, terminal=True)
    assert r"\x9b31m" in printed("diff", dest, HOSTILE_NAME, NEW, code=2)


# --- An output that fails


def outcome(home: Home, *arguments: str | Path, **streams: int | IO[Any]) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed on stderr, if that is a pipe."""
    result = subprocess.run(
        [*home.program, *map(str, arguments)],
        env=home.environment,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
        **({"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | streams),  # type: ignore[call-overload]
    )
    return result.returncode, (result.stderr or b"").decode()


@pytest.mark.parametrize("command", ["--help", "verify"])
def test_an_output_that_fails_is_one_line_or_none(home: Home, tmp_path: Path, command: str) -> None:
    """A disk that is full, and a pipe whose reader has ended."""
    make_snapshot(tmp_path / "dest", OLD, [Letter(1)])
    make_snapshot(tmp_path / "dest", NEW, [])
    rest = [] if command == "--help" else [tmp_path / "dest"]
    with Path("/dev/full").open("wb") as full:
        code, said = outcome(home, command, *rest, stdout=full)
        assert (code, said) == (8, "jmapfs: the standard output: No space left on device\n")
        assert OutputError.exit_code == code
        # Nobody can be told.
        assert outcome(home, command, *rest, stderr=full)[0] == 0
        assert outcome(home, command, *rest, stdout=full, stderr=full)[0] == 8
    reading, writing = os.pipe()
    os.close(reading)
    assert outcome(home, command, *rest, stdout=writing) == (ReaderGoneError.exit_code, "")
    os.close(writing)


def test_an_error_keeps_its_code_without_a_place_for_its_message(home: Home) -> None:
    with Path("/dev/full").open("wb") as full:
        assert outcome(home, "snapshots", "/no/place", stderr=full)[0] == 2
    reading, writing = os.pipe()
    os.close(reading)
    assert outcome(home, "snapshots", "/no/place", stderr=writing)[0] == 2
    os.close(writing)


def test_a_terminal_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is drawn by a thread; an error there would be a traceback."""
    terminal, end = pty.openpty()
    stream = os.fdopen(end, "w")
    monkeypatch.setattr("sys.stderr", stream)
    errors: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    from rich.console import Console

    from jmapfs.cli import progress
    from jmapfs.cli.output import Screen

    screen: Any = Screen()
    console = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "console", console)
    with progress.MailProgress("fetching", 10, 100) as bar:
        bar.advance(1, 10)
        os.close(terminal)
        for _ in range(3):
            bar.advance(1, 10)
            console._live_stack[0].refresh()
    stream.close()
    assert errors == []


def test_a_bug_is_printed_as_messages(home: Home) -> None:
    program = """
import sys
from jmapfs.cli import main
def fail(*_args, **_kwargs):
    raise ValueError("\\x1b[2J\\njmapfs: all is well\\x9b")
main.cli.main = fail
main.main()
"""
    home.program = [*home.program[:1], "-c", program]
    result = home.run("status")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "jmapfs: Traceback (most recent call last):"
    assert lines[-2:] == [r"jmapfs: ValueError: \x1b[2J", r"jmapfs: jmapfs: all is well\x9b"]


# --- The rule


def test_only_one_module_prints() -> None:
    """Ruff checks this as well (TID251, T201), but can be told not to."""
    allowed = {
        "cli/output.py": {"sys.stdout", "sys.stderr"},
        "cli/progress.py": {"rich"},
        "__main__.py": {"sys.stdout", "sys.stderr"},  # opens closed streams
    }
    package = ROOT / "jmapfs"
    found = {
        str(path.relative_to(package)): used
        for path in package.rglob("*.py")
        if (used := names_in(path) & PRINTING)
    }
    assert found == allowed


PRINTING: Final = {"print", "rich", "sys.stdout", "sys.stderr", "click.echo", "click.secho"}


def names_in(path: Path) -> set[str]:
    """Return the packages that a module imports, and the `module.name` and `print` in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Name("print")):
                found.add("print")
            case ast.Attribute(value=ast.Name(module), attr=name):
                found.add(f"{module}.{name}")
            case ast.ImportFrom(module=str(module), names=names):
                found |= {module.partition(".")[0], *(f"{module}.{one.name}" for one in names)}
            case ast.Import(names=names):
                found |= {one.name.partition(".")[0] for one in names}
            case _:
                pass
    return found
