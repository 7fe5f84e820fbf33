"""Which modules a command imports: its start must be fast, and only `mount` needs FUSE."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import click
import pytest

from jmapfs.cli.main import LazyCommand, cli

# Runs `jmapfs` with the arguments that follow, and prints what it imported as its last line.
PROGRAM = """
import json, sys
from jmapfs.cli.main import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""
NETWORK = {"trio", "httpx", "dns", "ssl"}
DISPLAY = {"rich"}
FUSE = {"pyfuse3"}

LAZY_COMMANDS = [command for command in cli.commands.values() if isinstance(command, LazyCommand)]


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
    assert not modules & (NETWORK | DISPLAY | FUSE)
    own = {name for name in modules if name.startswith("jmapfs.")}
    assert own == {"jmapfs.cli", "jmapfs.cli.main", "jmapfs.cli.options", "jmapfs.errors"}


@pytest.mark.parametrize("command", ["sync", "freeze", "thaw", "status"])
def test_commands_that_ask_a_mount_need_no_network(command: str) -> None:
    assert not modules_after(command, "--help") & (NETWORK | FUSE)


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_help_needs_no_fuse(command: str) -> None:
    assert not modules_after(command, "--help") & FUSE


@pytest.mark.parametrize("command", ["umount", "prefetch", "sync", "freeze", "thaw", "status"])
def test_only_mount_needs_fuse_when_it_runs(command: str) -> None:
    assert not modules_after(command, "/nowhere/mnt", exit_code=10) & FUSE


@pytest.mark.parametrize("lazy", LAZY_COMMANDS, ids=lambda command: command.name)
def test_short_help_is_the_first_sentence_of_the_command(lazy: LazyCommand) -> None:
    command = lazy.load()
    assert command.name == lazy.name
    assert command.get_short_help_str(1000) == lazy.get_short_help_str(1000)
    assert isinstance(command, click.Command)
    assert not isinstance(command, LazyCommand)


def test_every_command_is_loaded_lazily() -> None:
    assert len(LAZY_COMMANDS) == len(cli.commands) == 13


def test_help_is_not_much_slower_than_python_itself() -> None:
    # 5 times in practice; with all commands imported it was 30 times.
    assert fastest("-m", "jmapfs", "--help") < 15 * fastest("-c", "pass")


def fastest(*arguments: str) -> float:
    """Return the seconds of the fastest of several runs of Python."""
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
