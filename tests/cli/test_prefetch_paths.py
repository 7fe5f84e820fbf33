"""The mails below a path. A directory that cannot be listed is an error, not an empty one."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from jmapfs.cli import prefetch_command
from jmapfs.control.mounts import SUBTYPE, Mount
from jmapfs.errors import JmapfsError, NotMountedError, StorageError, UsageError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that looks like a mount of jmapfs, with a foreign mount inside."""
    tree = tmp_path / "mnt"
    for name in ("a.eml", "Box/b.eml", "Box/Below/c.eml", "Box/.jmapfs.json", "Box/other"):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.link(tree / "a.eml", tree / "Box" / "again.eml")
    (tree / "Foreign").mkdir()
    table = [
        Mount(Path("/"), "ext4", "disk", "8:1"),
        Mount(tree, f"fuse.{SUBTYPE}", "mail", "0:40", os.geteuid()),
        Mount(tree / "Foreign", "tmpfs", "tmpfs", "0:41"),
    ]
    monkeypatch.setattr("jmapfs.control.mounts.mounts", lambda: table)
    return tree


def inodes(tree: Path, *names: str) -> set[int]:
    return {(tree / name).stat().st_ino for name in names}


def below(*paths: Path) -> dict[Path, set[int]]:
    found = prefetch_command.mails_below(paths)
    for numbers in found.values():
        assert len(numbers) == len(set(numbers))
    return {mountpoint: set(numbers) for mountpoint, numbers in found.items()}


def test_mails_are_found_once(tree: Path) -> None:
    everything = inodes(tree, "a.eml", "Box/b.eml", "Box/Below/c.eml")
    assert below(tree) == {tree: everything}
    assert below(tree, tree / "Box", tree / "a.eml") == {tree: everything}
    assert below(tree / "Box" / "Below") == {tree: inodes(tree, "Box/Below/c.eml")}
    assert below(tree / "Box" / "again.eml") == {tree: inodes(tree, "a.eml")}


def test_paths_outside_a_mount_are_errors(tree: Path) -> None:
    for path in (tree.parent, tree / "Foreign", Path("/")):
        with pytest.raises(NotMountedError, match=str(path)):
            below(tree, path)


def test_paths_that_are_not_mail_are_errors(tree: Path) -> None:
    for name in ("Box/other", "Box/.jmapfs.json", "nothing", "nothing.eml"):
        with pytest.raises(UsageError, match=name):
            below(tree / name)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EIO, StorageError),
        (errno.EACCES, UsageError),
        (errno.ENOENT, UsageError),
        (errno.ENOTCONN, NotMountedError),
    ],
)
def test_a_directory_that_cannot_be_listed_is_an_error(
    tree: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[JmapfsError]
) -> None:
    scandir = os.scandir

    def failing(path: str) -> Any:
        if path.endswith("Below"):
            raise OSError(number, os.strerror(number))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(kind, match="Box/Below"):
        below(tree)
