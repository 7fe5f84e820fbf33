"""What needs no FUSE does without it: the binding to it cannot even be imported here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounting import Home
from tests.server import server_process

WITHOUT_FUSE = """
import sys
sys.modules["pyfuse3"] = None
{}
"""
COMMAND = "from jmapfs.cli.main import main; main()"
PACKAGES = "import jmapfs.cli.main, jmapfs.account, jmapfs.snapshot.create"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    program = (sys.executable, "-c", WITHOUT_FUSE.format(COMMAND))
    return Home(tmp_path / "home", "alice@example.org", "secret", program=program)


def test_packages_that_need_none() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_FUSE.format(PACKAGES)], check=True)


@pytest.mark.parametrize("command", [[], ["accounts"], ["mount"], ["umount"], ["prefetch"]])
def test_help(home: Home, command: list[str]) -> None:
    result = home.run(*command, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Usage: " in result.stdout


def test_commands_that_need_none(home: Home) -> None:
    with server_process("empty") as server:
        result = home.run("accounts", server.url)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "alice@example.org" in result.stdout
    result = home.run("status")
    assert (result.exit_code, result.stderr) == (0, "")
    assert home.run("sync", home.directory).exit_code == 10
