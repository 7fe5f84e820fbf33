"""An index, a cache and a snapshot written by an older version keep working.

`previous_version.tar.xz` was written by commit d5894c1; see `make_files`. The address of its server
is part of what identifies the account, so the test server listens on the same one.
`lied_to.tar.xz` has wrong content: that version believed a lying server; see `make_lied_to`.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from pathlib import Path

import pytest

from jmapfs.snapshot.manifest import read_manifest
from tests.mounts import Home
from tests.server import server_process

FILES = Path(__file__).with_name("previous_version.tar.xz")
LIED_TO = Path(__file__).with_name("lied_to.tar.xz")
HOST, PORT = "127.81.7.3", 18457
URL = f"http://{HOST}:{PORT}"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a home that has the caches of the previous version; `tmp_path` has the rest."""
    with tarfile.open(FILES) as archive:
        archive.extractall(tmp_path, filter="data")
    return Home(tmp_path / "home", "alice@example.org", "secret")


@pytest.mark.mount
def test_index_and_cache_serve_a_mount_without_a_server(home: Home, tmp_path: Path) -> None:
    expected = (tmp_path / "tree.tsv").read_text().splitlines()
    [snapshot] = tmp_path.glob("snapshots/2*Z")
    with home.mounted(URL, "--account", "Ateam") as mount:
        found = []
        for path in mount.path.rglob("*.eml"):
            status = path.stat()
            name = path.relative_to(mount.path)
            assert path.read_bytes() == (snapshot / "mail" / name).read_bytes()
            found.append((str(name), status.st_ino, status.st_size, status.st_mtime))
    assert len(expected) == 16
    assert sorted(found) == [
        (name, int(inode), int(size), float(mtime))
        for name, inode, size, mtime in (line.split("\t") for line in expected)
    ]


def test_a_new_snapshot_links_to_the_old_one(home: Home, tmp_path: Path) -> None:
    snapshots = tmp_path / "snapshots"
    [old] = snapshots.glob("2*Z")
    with server_process(host=HOST, port=PORT) as server:
        result = home.run("snapshot", "--account", "Ateam", URL, snapshots)
        assert (result.exit_code, server.control.counts().endpoints["download"]) == (0, 0)
    [new] = set(snapshots.glob("2*Z")) - {old}
    assert (snapshots / "latest").resolve() == new
    files = [path.relative_to(old) for path in old.rglob("*.eml")]
    assert sorted(path.relative_to(new) for path in new.rglob("*.eml")) == sorted(files)
    assert (new / "manifest.jsonl").read_bytes() == (old / "manifest.jsonl").read_bytes()
    for path in files:
        assert (new / path).samefile(old / path)
    assert home.run("verify", snapshots).exit_code == 0


@pytest.mark.mount
@pytest.mark.parametrize("cache", ["kept", "deleted"])
@pytest.mark.parametrize("through", ["account", "mount"])
def test_wrong_content_is_replaced(tmp_path: Path, cache: str, through: str) -> None:
    with tarfile.open(LIED_TO) as archive:
        archive.extractall(tmp_path, filter="data")
    home = Home(tmp_path / "home", "alice@example.org", "secret")
    snapshots = tmp_path / "snapshots"
    if cache == "deleted":
        shutil.rmtree(home.cache)
    with server_process(host=HOST, port=PORT) as server:
        with server.control.account("Ateam") as control:
            emails = control.dump().emails
        right = {email.blob_id: email.sha256 for email in emails}
        assert len(_wrong(snapshots / "latest", right)) == 5
        if through == "account":
            result = home.run("snapshot", "--account", "Ateam", URL, snapshots)
        else:
            with home.mounted(URL, "--account", "Ateam") as mount:
                result = home.run("snapshot", mount.path, snapshots)
                found = {_sha256(path) for path in mount.path.rglob("*.eml")}
                assert found == set(right.values())
        assert result.exit_code == 0, result.stderr
    assert "5 replaced" in result.stdout
    assert _wrong(snapshots / "latest", right) == []
    assert home.run("verify", snapshots).exit_code == 0


def _wrong(snapshot: Path, right: dict[str, str]) -> list[str]:
    """Return the blob ids of the mails whose files are not what the server has."""
    wrong = {
        mail.blob_id
        for _, mail in read_manifest(snapshot)
        for place in mail.mailboxes
        if _sha256(snapshot / place.file) != right[mail.blob_id]
    }
    return sorted(wrong)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
