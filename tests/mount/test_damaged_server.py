"""A Cyrus whose files were damaged on the disk of the server: everything else is saved.

Cyrus 3.6 answers for a message whose file is gone with 404 and `notFound`, and for a changed file
with its bytes. It still lists these emails with their old sizes.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import corpus
from tests.cyrus import Cyrus, Message
from tests.mails import random_mail
from tests.mount.test_content import read_soon
from tests.mounts import Home, Mounted, Result
from tests.snapshot.commands import everything_in, require_whole
from tests.stored_mail import START, StoredMail, store_mails

pytestmark = pytest.mark.mount

PARTIAL = 15  # the exit code of a snapshot that lacks mail


@dataclass
class DamagedAccount:
    """An account on Cyrus with three messages whose files are damaged; `repair` restores them."""

    stored: StoredMail
    damaged: dict[str, bytes]
    _files: dict[Path, Path] = field(default_factory=dict)

    @property
    def mails(self) -> list[bytes]:
        """Every name of every message that is intact."""
        lost = set(self.damaged.values())
        all_mails = [mail for mails in self.stored.mails.values() for mail in mails]
        return sorted(mail for mail in all_mails if mail not in lost)

    def damage(self, cyrus: Cyrus, copies: Path) -> None:
        """Damage the files on the disk of the server, and keep copies."""
        files = [
            file
            for file in (cyrus.config.directory / "mail").rglob("*.")
            if file.name[:-1].isdecimal()
        ]
        contents = {file.read_bytes(): file for file in files}
        for name, mail in self.damaged.items():
            file = contents[mail]
            self._files[file] = copies / name
            shutil.copy2(file, copies / name)
            shutil.chown(copies / name, file.owner(), file.group())
            match name:
                case "removed":
                    file.unlink()
                case "altered":
                    file.write_bytes(mail[:-5] + b"wrong")
                case _:
                    file.write_bytes(b"")

    def repair(self) -> None:
        """Restore the files, as from a backup of the server."""
        for file, copy in self._files.items():
            shutil.copy2(copy, file)
            shutil.chown(file, copy.owner(), copy.group())

    def paths(self, mount: Mounted) -> dict[str, str]:
        """Return the paths of the damaged messages in a mount, by the kind of damage."""
        damaged = {len(mail): name for name, mail in self.damaged.items()}
        found = {}
        for path, status in mount.files().items():
            if (name := damaged.get(status.st_size)) is not None:
                found[name] = path
        assert set(found) == set(self.damaged)
        return found


@pytest.fixture
def account(private_cyrus: Cyrus, tmp_path: Path) -> DamagedAccount:
    """Small mail and two large mails; one large mail is altered.

    The size of a damaged message is unique: it identifies the file in the mount.
    """
    damaged = {
        "removed": random_text(1, 3011),
        "altered": random_text(2, 1_500_013),
        "emptied": random_text(3, 3017),
    }
    plain = [*list(corpus.mails(40)), random_text(4, 1_600_000)]
    stored = store_mails(private_cyrus.add_user("alice"), plain)
    stored.account.fill("Work", [Message(mail, received=START) for mail in damaged.values()])
    stored.mails["Work"] += damaged.values()
    account = DamagedAccount(stored, damaged)
    (tmp_path / "copies").mkdir()
    account.damage(private_cyrus, tmp_path / "copies")
    return account


def random_text(number: int, size: int) -> bytes:
    """Return a message of `size` bytes that Cyrus accepts: it has neither NUL nor bare LF."""
    head, body = random_mail(number, size).split(b"\r\n\r\n", 1)
    return head + b"\r\n\r\n" + bytes(65 + byte % 26 for byte in body)


@pytest.fixture
def home(account: DamagedAccount, tmp_path: Path) -> Home:
    return account.stored.home(tmp_path / "home")


def test_the_mount_serves_the_rest_and_later_everything(
    account: DamagedAccount, home: Home
) -> None:
    with home.mounted(account.stored.account.url) as mount:
        lost = account.paths(mount)
        for _ in range(2):
            for path in lost.values():
                with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
                    (mount.path / path).read_bytes()
            rest = [path for path in mount.files() if path not in lost.values()]
            assert sorted((mount.path / path).read_bytes() for path in rest) == account.mails
        for path in lost.values():
            assert path in home.log()
        account.repair()
        for name, path in lost.items():
            assert read_soon(mount.path / path) == account.damaged[name]


@contextmanager
def source_of(kind: str, account: DamagedAccount, home: Home) -> Iterator[str | Path]:
    """Give what a snapshot is taken of: the account or its mount."""
    url = account.stored.account.url
    if kind == "account":
        yield url
    else:
        with home.mounted(url) as mount:
            yield mount.path


def paths_of(account: DamagedAccount, directory: Path) -> dict[str, str]:
    """Return the paths in the tree of the damaged messages, as a mount of another home has them."""
    other = account.stored.home(directory / "other")
    with other.mounted(account.stored.account.url) as mount:
        return account.paths(mount)


def snapshot(home: Home, source: str | Path, destination: Path, *options: str) -> Result:
    return home.run("snapshot", *options, source, destination)


def taken(destination: Path) -> list[Path]:
    return sorted(destination.glob("2*Z"))


def mails_in(snapshot: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (snapshot / "mail").rglob("*.eml"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["account", "mount"])
def test_snapshots_name_what_is_damaged(
    account: DamagedAccount, home: Home, tmp_path: Path, kind: str
) -> None:
    lost = paths_of(account, tmp_path)
    names = {path.rpartition("/")[2] for path in lost.values()}
    destination = tmp_path / "snapshots"
    with source_of(kind, account, home) as source:
        # Without --skip-bad: no snapshot, and all three are named.
        result = snapshot(home, source, destination)
        assert result.exit_code == PARTIAL, result
        for path in lost.values():
            assert path in result.stderr
        assert taken(destination) == []
        [missing] = destination.rglob("missing.jsonl")
        assert missing.parent.name.startswith(".partial-")
        assert {name for name in names if name in missing.read_text()} == names
        assert len(lines(missing)) == 3
        result = snapshot(home, source, destination, "--json")
        assert result.exit_code == PARTIAL, result
        assert len(json.loads(result.stdout)["missing"]) == 3
        for path in lost.values():
            assert path in result.stdout

        # With it: a snapshot of everything else.
        result = snapshot(home, source, destination, "--skip-bad")
        assert result.exit_code == PARTIAL, result
        [first] = taken(destination)
        require_whole(first)
        assert mails_in(first) == account.mails
        assert len(lines(first / "missing.jsonl")) == 3
        for path in lost.values():
            assert path in (first / "missing.jsonl").read_text()
        assert json.loads((first / "snapshot.json").read_text())["missing"] == 3
        assert home.run("verify", destination).exit_code == 0
        assert "incomplete" in home.run("snapshots", destination).stdout
        before = everything_in(first)

        # The next run fetches only what is missing.
        account.repair()
        result = snapshot(home, source, destination, "--json")
        assert result.exit_code == 0, result
        summary = json.loads(result.stdout)
        assert summary["fetched"] == 3
        [_, second] = taken(destination)
        require_whole(second)
        assert mails_in(second) == sorted([*account.mails, *account.damaged.values()])
        assert not (second / "missing.jsonl").exists()
        assert everything_in(first) == before
        assert home.run("verify", destination).exit_code == 0


@pytest.mark.parametrize("kind", ["account", "mount"])
def test_a_mount_and_a_snapshot_share_nothing_wrong(
    account: DamagedAccount, home: Home, tmp_path: Path, kind: str
) -> None:
    """What the attempts of a snapshot left in a cache is not served later, without a server."""
    url = account.stored.account.url
    with source_of(kind, account, home) as source:
        snapshot(home, source, tmp_path / "snapshots", "--skip-bad")
    with home.mounted(url) as mount:
        lost = account.paths(mount)
        home.run("prefetch", mount.path)
    account.repair()
    with home.mounted(url) as mount:
        for name, path in lost.items():
            assert read_soon(mount.path / path) == account.damaged[name]
