"""Wrong content that an older version took for mail is replaced, and never served.

`lied_to.tar.xz` was written by commit d5894c1; see `make_files.py`. The server now tells the truth.
Only the stated sizes show which content is wrong: one mail has wrong bytes and the right size, and
only a comparison with the digests of the server finds it.
"""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility.lied_to import HOST, PORT, SENT, URL, content, fill, number_of
from tests.mounts import Home
from tests.server import ServerProcess, server_process
from tests.snapshot.commands import everything_in, require_whole

FILES = Path(__file__).with_name("lied_to.tar.xz")
WRONG_SIZES = {number for number, sent in enumerate(SENT) if sent.has_wrong_size}
WRONG_BYTES = {number for number, sent in enumerate(SENT) if sent.has_right_size}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a home that has the caches of the previous version; `tmp_path` has the rest."""
    with tarfile.open(FILES) as archive:
        archive.extractall(tmp_path, filter="data")
    return Home(tmp_path / "home", "alice@example.org", "secret")


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """The server, which tells the truth now."""
    with server_process("empty", host=HOST, port=PORT) as server:
        fill(server.control)
        yield server


def snapshots(directory: Path) -> list[Path]:
    return sorted(directory.glob("snapshots/2*Z"))


def wrong_in(directory: Path) -> set[int]:
    """Return the numbers of the mails whose file is wrong; all mails must be there."""
    files = list(directory.rglob("*.eml"))
    assert {number_of(path) for path in files} == set(range(len(SENT)))
    assert len(files) == sum(2 if number % 2 else 1 for number in range(len(SENT)))
    return {number for path in files if path.read_bytes() != content(number := number_of(path))}


def snapshot(home: Home, source: str | Path, directory: Path, *options: str) -> dict[str, Any]:
    result = home.run("snapshot", "--json", *options, source, directory / "snapshots")
    assert result.exit_code == 0, result
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def test_the_files_are_wrong(home: Home, tmp_path: Path) -> None:
    """They are what the other tests expect: the older version verified them."""
    [old] = snapshots(tmp_path)
    assert wrong_in(old) == WRONG_SIZES | WRONG_BYTES
    assert len(WRONG_SIZES) == 7
    assert len(WRONG_BYTES) == 1
    assert home.run("verify", tmp_path / "snapshots").exit_code == 0


@pytest.mark.mount
@pytest.mark.parametrize("source", ["account", "mount"])
@pytest.mark.parametrize("kept", ["cache and snapshot", "snapshot", "cache"])
@pytest.mark.usefixtures("server")
def test_the_next_snapshot_replaces_what_is_wrong(
    home: Home, tmp_path: Path, source: str, kept: str
) -> None:
    [old] = snapshots(tmp_path)
    before = everything_in(old)
    if kept == "snapshot":
        shutil.rmtree(home.cache)
    if kept == "cache":
        old.rename(tmp_path / "old")
        old = tmp_path / "old"
        (tmp_path / "snapshots" / "latest").unlink()
    if source == "account":
        summary = snapshot(home, URL, tmp_path)
    else:
        with home.mounted(URL) as mount:
            summary = snapshot(home, mount.path, tmp_path)
    new = snapshots(tmp_path)[-1]
    require_whole(new)
    assert wrong_in(new) <= WRONG_BYTES
    assert summary["replaced"] == (0 if kept == "cache" else len(WRONG_SIZES))
    lines = (new / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["size"] for line in lines] == [
        len(content(number)) for number in range(len(SENT))
    ]
    assert home.run("verify", tmp_path / "snapshots").exit_code == 0
    after = everything_in(old)
    if kept != "cache":
        # Right files are shared with the old snapshot, which stays as it was.
        assert after == before
        unchanged = [path for path in old.rglob("*.eml") if number_of(path) not in WRONG_SIZES]
        assert all(path.samefile(new / path.relative_to(old)) for path in unchanged)
    # One snapshot later there is nothing to replace.
    assert snapshot(home, URL, tmp_path)["replaced"] == 0


@pytest.mark.usefixtures("server")
def test_a_check_replaces_wrong_bytes_of_the_right_size(home: Home, tmp_path: Path) -> None:
    [old] = snapshots(tmp_path)
    result = home.run("verify", "--online", URL, tmp_path / "snapshots")
    assert result.exit_code == 11, result
    for path in old.rglob("*.eml"):
        if number_of(path) in WRONG_SIZES | WRONG_BYTES:
            assert path.name in result.stdout + result.stderr
    summary = snapshot(home, URL, tmp_path, "--check")
    assert summary["replaced"] == len(WRONG_SIZES | WRONG_BYTES)
    new = snapshots(tmp_path)[-1]
    assert wrong_in(new) == set()
    date = tmp_path / "snapshots" / new.name
    assert home.run("verify", "--online", URL, date).exit_code == 0


@pytest.mark.mount
def test_a_mount_serves_only_right_content(home: Home, server: ServerProcess) -> None:
    with home.mounted(URL) as mount:
        files = list(mount.path.rglob("*.eml"))
        for path in files:
            assert path.stat().st_size == len(content(number_of(path))), path
        assert wrong_in(mount.path) <= WRONG_BYTES
    # And so does its cache.
    server.stop()
    with home.mounted(URL) as mount:
        assert wrong_in(mount.path) <= WRONG_BYTES


@pytest.mark.mount
def test_without_a_server_wrong_content_is_an_error(home: Home) -> None:
    with home.mounted(URL) as mount:
        failed = set()
        for path in mount.path.rglob("*.eml"):
            number = number_of(path)
            if (read := read_or_none(path)) is None:
                failed.add(number)
            else:
                assert read == content(number) or number in WRONG_BYTES
        assert failed == WRONG_SIZES


def read_or_none(path: Path) -> bytes | None:
    """Read a file; return None if it fails with EIO."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None
