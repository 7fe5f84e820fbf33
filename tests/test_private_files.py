"""Directories that only the user can change, and files that cannot surprise who opens them."""

from __future__ import annotations

import os
import pwd
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from jmapfs import private_files
from jmapfs.private_files import (
    UnsafePathError,
    create_file,
    make_directory,
    open_private,
    open_reading,
    open_regular,
    private_directory,
    read_named_file,
    require_own_database,
)
from tests.umask import process_umask

UMASKS = [0o000, 0o002, 0o022, 0o077, 0o777]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
OTHER = pwd.getpwnam("games").pw_uid


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", UMASKS)
def test_directories_and_files_have_their_modes_whatever_the_umask(
    tmp_path: Path, mask: int
) -> None:
    with process_umask(mask):
        private_directory(tmp_path / "a" / "b" / "c", named=tmp_path / "a")
        private_directory(tmp_path / "new" / "parents" / "named" / "d")
        make_directory(tmp_path / "e")
        os.close(create_file(tmp_path / "e" / "mail"))
        os.close(open_private(tmp_path / "e" / "lock"))
    directories = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert len(directories) == 8
    assert {mode_of(path) for path in directories} == {0o700}
    assert mode_of(tmp_path / "e" / "mail") == 0o400
    assert mode_of(tmp_path / "e" / "lock") == 0o600


@pytest.mark.parametrize("level", ["a", "a/b", "a/b/c"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.chmod(0o777), "others can write in it: .*, and run: chmod go-w "),
        (lambda path: path.chmod(0o1777), "others can write"),
        (
            lambda path: path.rename(f"{path}.moved") and path.symlink_to(f"{path}.moved"),
            "it is a symbolic link: replace it by a directory",
        ),
        (lambda path: path.rename(f"{path}.moved") and path.touch(), "it is a file: replace"),
        pytest.param(
            lambda path: os.chown(path, OTHER, -1),
            "it belongs to games: move it away, or make it yours with chown",
            marks=needs_root,
        ),
    ],
)
def test_each_level_below_the_named_directory_is_checked(
    tmp_path: Path, level: str, spoil: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "a/b/c"
    private_directory(path, named=tmp_path)
    path.parent.chmod(0o750)
    private_directory(path, named=tmp_path)
    spoil(tmp_path / level)
    with pytest.raises(UnsafePathError, match=reason) as caught:
        private_directory(path, named=tmp_path)
    assert caught.value.filename == str(tmp_path / level)


@pytest.mark.parametrize(
    "choose",
    [
        lambda path: path.chmod(0o2770),
        lambda path: path.chmod(0o777),
        lambda path: path.rename(f"{path}.moved") and path.symlink_to(f"{path}.moved"),
        pytest.param(lambda path: os.chown(path, OTHER, -1), marks=needs_root),
    ],
)
def test_the_named_directory_is_the_choice_of_the_user(
    tmp_path: Path, choose: Callable[[Path], None]
) -> None:
    named = tmp_path / "named"
    named.mkdir()
    choose(named)
    private_directory(named / "a" / "b", named=named)
    private_directory(named / "a" / "b", named=named)
    assert mode_of(named / "a") & 0o777 == 0o700


@needs_root
def test_the_owner_of_the_named_directory_may_own_what_is_in_it(tmp_path: Path) -> None:
    """As with `sudo jmapfs snapshot` into a directory of the user."""
    named = tmp_path / "named"
    private_directory(named / "a")
    os.chown(named, OTHER, -1)
    os.chown(named / "a", OTHER, -1)
    private_directory(named / "a", shared=True)
    with pytest.raises(UnsafePathError, match="belongs to games"):
        private_directory(named / "a")


@needs_root
def test_a_file_system_without_owners_and_modes_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new file shows the owner and the mode that all files have there."""
    path = tmp_path / "a" / "b"
    private_directory(path, named=tmp_path)
    given = tmp_path / "given"
    given.touch()
    for one in (tmp_path / "a", path, given):
        os.chown(one, OTHER, -1)
        one.chmod(0o777)
    with pytest.raises(UnsafePathError, match="it belongs to games"):
        private_directory(path, named=tmp_path)
    monkeypatch.setattr(private_files, "_probe", lambda _: given.stat())
    private_directory(path, named=tmp_path)
    given.chmod(0o600)
    with pytest.raises(UnsafePathError, match="others can write in it"):
        private_directory(path, named=tmp_path)


def test_nothing_remains_of_the_check(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    path.chmod(0o777)
    with pytest.raises(UnsafePathError, match="others can write in it"):
        private_directory(path)
    assert list(path.iterdir()) == []


def test_a_directory_that_is_replaced_meanwhile_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of a directory and the next step, another user puts a link there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o777)
    mkdir = os.mkdir

    def replaced(name: str, mode: int, *, dir_fd: int | None = None) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
        os.symlink(elsewhere, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", replaced)
    with pytest.raises(UnsafePathError, match="symbolic link"):
        private_directory(tmp_path / "a" / "b", named=tmp_path)
    assert list(elsewhere.iterdir()) == []


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": _socket,
    "a directory": Path.mkdir,
    "a symbolic link": lambda path: path.symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "use",
    [
        open_regular,
        open_reading,
        open_private,
        lambda path: open_private(path, os.O_RDONLY, create=False),
        lambda path: open_private(path, os.O_WRONLY | os.O_APPEND),
        require_own_database,
        lambda path: require_own_database(path.with_name(path.name.removesuffix("-wal"))),
        read_named_file,
    ],
)
def test_no_special_file_is_opened_or_waited_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    use: Callable[[Path], object],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x-wal"
    SPECIAL[kind](path)
    if use is read_named_file and kind == "a symbolic link":
        assert read_named_file(path) == Path("/etc/passwd").read_bytes()
        return
    with pytest.raises(UnsafePathError, match=f"it is {kind}, not a file"):
        use(path)


@needs_root
def test_a_file_of_another_user_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, OTHER, -1)
    for use in (open_private, require_own_database):
        with pytest.raises(UnsafePathError, match="it belongs to games: remove it"):
            use(path)
    os.close(open_regular(path))
    os.chown(tmp_path, OTHER, -1)
    os.close(open_private(path))


def test_who_may_change_or_read_a_named_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    path.chmod(0o644)
    assert read_named_file(path, own=True) == b"text"
    with pytest.raises(UnsafePathError, match=f"can access it; run: chmod 600 {path}"):
        read_named_file(path, secret=True)
    path.chmod(0o602)
    with pytest.raises(UnsafePathError, match=f"can change it; run: chmod go-w {path}"):
        read_named_file(path, own=True)


@needs_root
def test_a_named_file_of_the_caller_of_sudo_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    os.chown(path, OTHER, -1)
    monkeypatch.delenv("SUDO_UID", raising=False)
    with pytest.raises(UnsafePathError, match="it belongs to games, who can change it"):
        read_named_file(path, own=True)
    monkeypatch.setenv("SUDO_UID", str(OTHER))
    assert read_named_file(path, own=True) == b"text"
