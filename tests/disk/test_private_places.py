"""Whose directories jmapfs makes and trusts, and which files it opens, shown by its commands."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from jmapfs.control.mounts import file_stem
from jmapfs.errors import ConfigError, StorageError
from tests.disk.damage import ALL, REPLACED
from tests.disk.original import OTHER_USER, Files, copy_of, effective_user
from tests.mounts import Home
from tests.umask import process_umask

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
OTHER: Final = pwd.getpwnam(OTHER_USER).pw_uid


def modes(directory: Path) -> dict[int, set[str]]:
    """Return the names of the directories in a directory, by mode."""
    found: dict[int, set[str]] = {}
    for path in directory.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            found.setdefault(stat.S_IMODE(path.stat().st_mode), set()).add(path.name)
    return found


@pytest.mark.mount
@pytest.mark.parametrize("mask", [0o000, pytest.param(0o777, marks=pytest.mark.long)])
def test_each_directory_of_each_command_is_private_whatever_the_umask(
    original: Files, tmp_path: Path, mask: int
) -> None:
    """No directory exists before, neither one of the system nor one of jmapfs."""
    new = tmp_path / "new"
    home = Home(tmp_path / "home", "alice@example.org", "secret")
    home.variables = {
        f"XDG_{kind.upper()}_HOME": str(new / f"a/{kind}") for kind in ("cache", "state", "config")
    }
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with process_umask(mask):
        mounted = home.run("mount", "--all-accounts", original.server.url, mountpoint)
        assert mounted.exit_code == 0, mounted.stderr
        try:
            [account] = [path.name for path in mountpoint.iterdir() if path.is_dir()]
            commands: list[list[str | Path]] = [
                ["prefetch", mountpoint],
                ["snapshot", mountpoint / account, new / "from-mount"],
                ["verify", new / "from-mount"],
                ["prune", "--keep-last", "1", new / "from-mount"],
            ]
            for command in commands:
                result = home.run(*command)
                assert result.exit_code == 0, result.stderr
        finally:
            assert home.run("umount", mountpoint).exit_code == 0
    found = modes(new)
    assert set(found) == {0o700}
    expected = {"cache", "state", "jmapfs", "log", "blobs", "large", "from-mount", ".jmapfs"}
    assert expected | {"mail", "Inbox"} <= found[0o700]


@needs_root
@pytest.mark.parametrize("mask", [0o000, 0o777])
def test_another_user_with_any_umask_can_use_what_jmapfs_made(original: Files, mask: int) -> None:
    """Root could read directories and files without permissions."""
    with copy_of(original, "copy") as files:
        files.give_to(OTHER_USER)
        new, cache = files.directory / "new", files.directory / "a/b/cache"
        with effective_user(OTHER_USER), process_umask(mask):
            for _ in range(2):
                taken = files.run("snapshot", "--cache-dir", cache, files.server.url, new)
                assert taken.exit_code == 0, taken
            assert files.run("verify", new).exit_code == 0
            assert files.run("diff", new, "latest", "latest").exit_code == 0
            assert files.run("prune", "--keep-last", "1", new).exit_code == 0
        assert set(modes(new)) == set(modes(files.directory / "a")) == {0o700}
        assert {stat.S_IMODE(one.stat().st_mode) for one in new.rglob("*.eml")} == {0o400}


def _writable(path: Path) -> None:
    path.chmod(0o777)


def _link(path: Path) -> None:
    """What the link leads to belongs to the user, but whoever made it can change it."""
    target = path.parents[1] / "planted"
    path.rename(target)
    path.symlink_to(target)


def _of_another_user(path: Path) -> None:
    os.chown(path, OTHER, -1)


PLANTED: Final[dict[str, tuple[Callable[[Path], None], str]]] = {
    "writable": (_writable, "others can write in it: remove what is not yours in it, and run: "),
    "link": (_link, "it is a symbolic link: replace it by a directory"),
    "of another user": (
        _of_another_user,
        "it belongs to games: move it away, or make it yours with chown",
    ),
}


@needs_root
@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("level", ["..", ".", "blobs", "blobs/large"])
def test_a_planted_directory_in_the_cache_is_refused(
    original: Files, planted: str, level: str
) -> None:
    plant, reason = PLANTED[planted]
    with copy_of(original, "copy") as files:
        path = Path(os.path.normpath(files.account / level))
        plant(path)
        taken = files.run("snapshot", files.server.url, files.directory / "new")
        assert taken.exit_code == StorageError.exit_code
        assert taken.error.startswith(f"{path}: {reason}")
        if (level, planted) == ("..", "link"):
            # A link to a larger disk is a real setup.
            assert taken.error.endswith(f", or use --cache-dir {path.resolve()}")
        assert not (files.directory / "new").exists()


@needs_root
@pytest.mark.mount
@pytest.mark.parametrize(
    ("level", "planted"),
    [
        ("cache/jmapfs", "of another user"),
        ("cache/jmapfs/*", "link"),
        ("cache/jmapfs/*/blobs", "of another user"),
        ("state/jmapfs", "writable"),
        ("state/jmapfs/log", "link"),
    ],
)
def test_a_planted_directory_is_not_used_by_a_mount(
    original: Files, level: str, planted: str
) -> None:
    plant, reason = PLANTED[planted]
    with copy_of(original, "copy") as files:
        [path] = files.home.directory.glob(level)
        plant(path)
        for options in ((), ("--all-accounts",)):
            mountpoint = files.home.directory / "mnt"
            mounted = files.home.run("mount", *options, files.server.url, mountpoint)
            assert mounted.exit_code == StorageError.exit_code
            [line] = mounted.stderr.splitlines()
            assert f"{path}: {reason}" in line


@needs_root
def test_the_directory_that_the_user_named_is_not_checked(original: Files) -> None:
    with copy_of(original, "copy") as files:
        for name in ("named", "dest"):
            path = files.directory / name
            path.mkdir(exist_ok=True)
            path.chmod(0o2777)
            os.chown(path, OTHER, -1)
        for _ in range(2):
            taken = files.run(
                "snapshot", "--cache-dir", files.directory / "named", files.server.url, files.dest
            )
            assert taken.exit_code == 0
        files.require_right(files.dates[-1])
        assert stat.S_IMODE(files.dest.stat().st_mode) == 0o2777


@needs_root
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_state_directory_of_a_repository_is_refused(
    original: Files, planted: str
) -> None:
    plant, reason = PLANTED[planted]
    with copy_of(original, "copy") as files:
        path = files.dest / ".jmapfs"
        plant(path)
        for outcome in (
            files.snapshot(),
            files.run("prune", "--keep-last", "1", files.dest),
        ):
            assert outcome.exit_code == StorageError.exit_code
            assert f"{path}: {reason}" in outcome.error
        verified = files.run("verify", files.dest)
        assert verified.exit_code == 0
        assert "the result cannot be recorded" in verified.stderr
        assert len(files.dates) == 2


@needs_root
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_snapshot_is_not_linked_to(original: Files, planted: str) -> None:
    """Its owner could change the files of the new snapshot later."""
    plant, reason = PLANTED[planted]
    with copy_of(original, "copy") as files:
        first, second = files.dates
        plant(files.dest / second)
        taken = files.snapshot()
        assert taken.exit_code == 0
        # The first snapshot is the base instead. A link is no snapshot at all.
        if planted != "link":
            assert f"{files.dest / second}: {reason}" in " ".join(taken.stderr.split())
        new = files.dest / files.dates[-1]
        files.require_right(new.name)
        [same] = (new / "mail/Inbox").glob("*_mail-2_*")
        assert same.samefile(files.dest / first / "mail/Inbox" / same.name)
        [other] = (new / "mail/Inbox").glob("*_mail-6_*")
        assert other.stat().st_nlink == 1


@needs_root
@pytest.mark.parametrize("planted", ["writable", "of another user"])
def test_a_planted_interrupted_run_is_left_alone(
    original: Files, planted: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its journal could name any content for a mail."""
    plant, reason = PLANTED[planted]
    with copy_of(original, "copy") as files:
        [partial] = files.dest.glob(".partial-*")
        plant(partial)
        assert files.snapshot().exit_code == 0
        files.require_right(files.dates[-1])
        assert partial.is_dir()
        assert f"{partial} is left alone: {reason}" in caplog.text


@pytest.mark.parametrize("damage", ["fifo", "socket", "directory", "empty"])
@pytest.mark.parametrize("file", ["JMAPFS_CONFIG", "password_file", "ca_file", "SSL_CERT_FILE"])
def test_no_command_waits_for_a_file_that_the_user_named(
    original: Files, tmp_path: Path, file: str, damage: str
) -> None:
    files = replace(original, directory=tmp_path)
    config, other = tmp_path / "config.toml", tmp_path / "file"
    home = files.home
    other.write_text("secret\n")
    other.chmod(0o600)
    lines = ["[home]", f'server = "{original.server.url}"', 'user = "alice@example.org"']
    if file != "password_file":
        lines.append('password_env = "JMAPFS_PASSWORD"')
    if file in {"password_file", "ca_file"}:
        lines.append(f"{file} = '{other}'")
    config.write_text("\n".join(lines))
    environment = home.environment | {"JMAPFS_CONFIG": str(config)}
    if file == "SSL_CERT_FILE":
        environment[file] = str(other)
    ALL[damage](config if file == "JMAPFS_CONFIG" else other)
    outcome = files.run("accounts", "home", environment=environment)
    if (file, damage) == ("SSL_CERT_FILE", "empty"):
        return
    assert outcome.exit_code == ConfigError.exit_code
    if damage in REPLACED:
        what = {"fifo": "a FIFO", "socket": "a socket"}.get(damage, "a directory")
        assert f"it is {what}, not a file" in outcome.error


@pytest.mark.mount
@pytest.mark.parametrize(
    "damage",
    ["fifo", *(pytest.param(one, marks=pytest.mark.long) for one in ("link", "directory"))],
)
def test_a_mount_does_not_wait_for_its_own_files(original: Files, damage: str) -> None:
    with copy_of(original, "copy") as files:
        home, mountpoint = files.home, files.home.directory / "mnt"
        log = home.directory / f"state/jmapfs/log/{file_stem(mountpoint)}.log"
        names = files.account / "accounts.json"
        for path in (log, names):
            path.write_text("{}")
            ALL[damage](path)
        refused = home.run("mount", "--all-accounts", files.server.url, mountpoint)
        assert refused.exit_code == StorageError.exit_code
        what = {"fifo": "a FIFO", "link": "a symbolic link"}.get(damage, "a directory")
        assert f"cannot write the log {log}: it is {what}, not a file" in refused.stderr
        log.rmdir() if damage == "directory" else log.unlink()
        with home.mounted(files.server.url, "--all-accounts"):
            assert [one.name for one in mountpoint.iterdir() if one.is_dir()]
