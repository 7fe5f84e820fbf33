"""The modules that a command imports: it must start fast, and only `mount` may need FUSE."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jmapfs.cli.main import LazyCommand, cli
from tests.mounts import Home
from tests.server import server_process

# Runs `jmapfs` with the arguments that follow, and prints what it imported as its last line.
PROGRAM = """
import json, sys
from jmapfs.cli.main import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""
WITHOUT_FUSE = "import sys; sys.modules['pyfuse3'] = None; from jmapfs.cli.main import main; main()"

NETWORK = {"trio", "httpx", "dns", "ssl"}
FUSE = {"pyfuse3"}

ALL_COMMANDS = sorted(cli.commands)
MOUNT_COMMANDS = ["freeze", "prefetch", "status", "sync", "thaw", "umount"]


def modules_after(*arguments: str, exit_code: int = 0) -> set[str]:
    """Run the command in a fresh process, and return the names of the imported modules."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == exit_code, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_the_list_of_commands_imports_none_of_them(arguments: list[str]) -> None:
    modules = modules_after(*arguments, exit_code=0 if arguments else 2)
    assert not modules & (NETWORK | FUSE | {"rich"})
    own = {name for name in modules if name.startswith("jmapfs.")}
    assert own == {
        "jmapfs.cli",
        "jmapfs.cli.log",
        "jmapfs.cli.main",
        "jmapfs.cli.output",
        "jmapfs.errors",
        "jmapfs.protection",
        "jmapfs.text",
    }


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_help_needs_no_fuse(command: str) -> None:
    assert not modules_after(command, "--help") & FUSE


@pytest.mark.parametrize("command", ["freeze", "status", "sync", "thaw", "umount"])
def test_requests_to_a_mount_need_no_network(command: str) -> None:
    assert not modules_after(command, "--help") & NETWORK


@pytest.mark.parametrize("command", MOUNT_COMMANDS)
def test_only_mount_needs_fuse_when_it_runs(command: str) -> None:
    assert not modules_after(command, "/nowhere/mnt", exit_code=10) & FUSE


def test_accounts_needs_no_fuse(tmp_path: Path) -> None:
    program = (sys.executable, "-c", WITHOUT_FUSE)
    home = Home(tmp_path / "home", "alice@example.org", "secret", program=program)
    with server_process("empty") as server:
        result = home.run("accounts", server.url)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "alice@example.org" in result.stdout
        directory = home.directory / "mnt"
        directory.mkdir()
        result = home.run("mount", server.url, directory)
        assert (result.exit_code, len(result.stderr.splitlines())) == (7, 1)
        assert "mount needs libfuse3 and pyfuse3" in result.stderr


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_short_help_is_the_first_sentence_of_the_command(name: str) -> None:
    lazy = cli.commands[name]
    assert isinstance(lazy, LazyCommand)
    command = lazy.load()
    assert command.name == name
    assert command.get_short_help_str(1000) == lazy.get_short_help_str(1000)


def test_help_is_not_much_slower_than_python_itself() -> None:
    # In practice 5 times; 30 times if all commands are imported.
    assert fastest("-m", "jmapfs", "--help") < 15 * fastest("-c", "pass")


def fastest(*arguments: str) -> float:
    """Return the seconds of the fastest of several runs of Python."""
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
