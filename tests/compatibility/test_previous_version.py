"""An index, a cache and a snapshot written by an older version keep working.

`previous_version.tar.xz` was written by commit d5894c1; see `make_files.py`. The address of its
server is part of what identifies the account, so the test server listens on the same one.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.mounts import Home
from tests.relay import Relay
from tests.server import server_process

FILES = Path(__file__).with_name("previous_version.tar.xz")
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


@pytest.mark.mount
def test_all_continues_after_a_move_of_the_api(home: Home, tmp_path: Path) -> None:
    """Since the older version ran, the API has moved to another host and port."""
    snapshots = tmp_path / "snapshots"
    with (
        server_process(host=HOST, port=PORT) as server,
        Relay(PORT, target_host=HOST, host="127.81.7.4") as relay,
    ):
        origin = f"http://{relay.host}:{relay.port}"
        server.control.set_quirks(
            session_overrides={
                "apiUrl": f"{origin}/jmap/api",
                "downloadUrl": origin + "/jmap/download/{accountId}/{blobId}/{name}?t={type}",
                "eventSourceUrl": None,
            }
        )
        with home.mounted(URL, "--account", "Ateam") as mount:
            assert len(mount.files()) == 16
            assert mount.status()["server"] == f"{origin}/jmap/api"
            for source in (URL, mount.path):
                options = ("--account", "Ateam") if source == URL else ()
                result = home.run("snapshot", "--json", *options, source, snapshots)
                assert result.exit_code == 0, result.stderr
                assert json.loads(result.stdout)["fetched"] == 0
        assert server.control.counts().endpoints["download"] == 0


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
