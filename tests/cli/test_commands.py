"""The command line: help, usage errors, and accounts from a configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from jmapfs import __version__
from jmapfs.cli.status_command import status_command
from jmapfs.control.mounts import SUBTYPE, Mount
from jmapfs.errors import RelayedError
from tests.mounts import Home
from tests.server import server_process

SECRET = "s3cret-0f-alice"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home directory, without credentials in the environment."""
    return Home(tmp_path / "home")


def configure(home: Home, text: str) -> None:
    directory = home.directory / "config" / "jmapfs"
    directory.mkdir()
    (directory / "config.toml").write_text(text)


def test_help_and_version(home: Home) -> None:
    for arguments in (["--help"], ["-h"]):
        result = home.run(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        for word in ("mount", "umount", "status", "--version"):
            assert word in result.stdout
    result = home.run("mount", "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    for word in ("ACCOUNT", "MOUNTPOINT", "--cache-size", "--cache-dir", "10G", "JMAPFS_TOKEN"):
        assert word in result.stdout
    # There is no option for a secret: other users can see command lines.
    assert "--password" not in result.stdout
    assert "--token" not in result.stdout
    result = home.run("--version")
    assert (result.exit_code, result.stderr) == (0, "")
    assert __version__ in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["mount"],
        ["mount", "example.org"],
        ["mount", "--cache-size", "much", "example.org", "/mnt"],
        ["mount", "--nonsense", "example.org", "/mnt"],
    ],
)
def test_invalid_command_lines(home: Home, arguments: list[str]) -> None:
    result = home.run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("jmapfs: ")
    assert line.endswith(f": see jmapfs{' mount' * ('mount' in arguments)} --help")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (
            ["snapshot", "/no/mount", "DEST"],
            10,
            "/no/mount: there is no such mount, and no account",
        ),
        (["snapshot", "mail/Inbox", "DEST"], 10, "mail/Inbox: there is no such mount, and no"),
        (["snapshot", "DEST", "DEST"], 10, "mount the account, or name it as SOURCE"),
        (["accounts", "/no/mount"], 3, "/no/mount is a path, not an account: give the name"),
        (["mount", "DEST", "home"], 3, "is a path, not an account"),
        (["verify", "--online", "./mail", "DEST"], 2, "neither a snapshot nor a directory with"),
        (["sync", "/no/mount"], 10, "not mounted there; jmapfs status shows all mounts"),
        (["prefetch", "/no/mount"], 10, "not mounted there; jmapfs status shows all mounts"),
        (["snapshots", "FILE"], 2, "FILE: not a directory"),
        (["prune", "--keep-last", "1", "FILE"], 2, "FILE: not a directory"),
        (["diff", "/no/dest", "latest", "latest"], 2, "/no/dest: no such directory"),
    ],
)
def test_arguments_that_are_something_else(
    home: Home, arguments: list[str], exit_code: int, text: str
) -> None:
    """A path instead of an account, a directory that is no mount, and the like."""
    (home.directory / "DEST").mkdir()
    (home.directory / "FILE").touch()
    places = {name: str(home.directory / name) for name in ("DEST", "FILE")}
    result = home.run(*(places.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (exit_code, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("jmapfs: ")
    assert text in line


def test_a_configuration_error_is_one_line(home: Home) -> None:
    configure(home, f'[home]\nserver = "example.org"\npassword = "{SECRET}"\n')
    result = home.run("mount", "home", home.directory / "run")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    assert SECRET not in result.stderr
    assert result.stdout == ""


@pytest.mark.mount
@pytest.mark.parametrize("kind", ["password_command", "token_file"])
def test_mount_a_configured_account(home: Home, kind: str) -> None:
    with server_process(
        "sample", username="alice@example.org", password=SECRET, token=SECRET
    ) as server:
        file = home.directory / "secret"
        file.write_text(f"{SECRET}\n")
        file.chmod(0o600)
        way = f"cat '{file}'" if kind.endswith("command") else file
        configure(
            home,
            f'[home]\nserver = "{server.url}/session"\nuser = "alice@example.org"\n'
            f'{kind} = "{way}"\n',
        )
        with home.mounted("home", "-v") as mount:
            assert mount.status()["emails"] == len(server.control.dump().emails)
            path = mount.path / min(mount.files())
            assert path.read_bytes()
            info = Path("/proc/self/mountinfo").read_text(errors="replace")
            (line,) = [each for each in info.splitlines() if str(mount.path) in each]
            assert " home " in line
            pid = mount.status()["pid"]
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
            assert SECRET.encode() not in arguments
        schemes = server.control.counts().headers["authorization"]
        assert set(schemes) == {"Basic" if kind.startswith("password") else "Bearer"}
    assert SECRET not in home.log()
    kept = [path for path in home.directory.rglob("*") if path.is_file() and path != file]
    assert len(kept) >= 3
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]


@pytest.mark.mount
def test_the_account_option_overrides_the_configuration(home: Home) -> None:
    """The option overrides the file, and the file overrides the primary account."""
    home.username, home.password = "alice@example.org", "secret"
    with server_process("empty") as server:
        for name in ("one", "two"):
            server.control.add_account(f"A{name}", f"{name}@example.org")
        configure(
            home,
            f'[plain]\nserver = "{server.url}"\n'
            f'[shared]\nserver = "{server.url}"\naccount = "one@example.org"\n',
        )
        for arguments, account in (
            (["plain"], "alice@example.org"),
            (["shared"], "one@example.org"),
            (["--account", "two@example.org", "shared"], "two@example.org"),
            (["--account", "Aone", "plain"], "one@example.org"),
        ):
            *options, source = arguments
            with home.mounted(source, *options) as mount:
                assert mount.status()["account"] == account


def test_a_mount_without_a_status_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, somebody has removed the cache directory of a mount."""

    def refuse(mount: Mount, _: object) -> None:
        raise RelayedError(f"cannot open the index of {mount.mountpoint}", 8)

    paths = [Path("/mnt/a"), Path("/mnt/b")]
    found = [Mount(path, f"fuse.{SUBTYPE}", "jmapfs", "0:50") for path in paths]
    monkeypatch.setattr("jmapfs.cli.status_command.own_mounts", lambda: found)
    monkeypatch.setattr("jmapfs.cli.status_command.ask_mount", refuse)
    result = CliRunner().invoke(status_command, ["--json"])
    assert result.exit_code == 0
    assert [one["error"] for one in json.loads(result.stdout)] == [
        f"cannot open the index of {path}" for path in paths
    ]
