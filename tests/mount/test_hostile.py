"""A mount of a hostile account: all of its mail is there, and nothing outside the mount."""

from __future__ import annotations

import hashlib
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounts import Home, Mounted, command, portable
from tests.server import Dump, ServerProcess, server_process

pytestmark = pytest.mark.mount

BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# What a shell, a terminal or a path gives a meaning to.
UNSAFE = set("/\\\0\"'`$&|;<>(){}[]*?!~# \t\n\r%^=:")


@dataclass(frozen=True)
class Hostile:
    """The account, mounted, and what the server says that is in it."""

    home: Home
    server: ServerProcess
    mount: Mounted
    dump: Dump

    def directories(self) -> dict[str, str]:
        """Return the directory of each mailbox but the Inbox, by the one mail that names it."""
        wanted = {
            email.sha256: email.mailbox_ids[0]
            for email in self.dump.emails
            if len(email.mailbox_ids) == 1 and email.received_at == "2024-07-07T07:07:07Z"
        }
        found: dict[str, str] = {"Pinbox": "Inbox"}
        for path, sha256 in checksums(self.mount.path).items():
            if sha256 in wanted:
                assert wanted[sha256] not in found
                found[wanted[sha256]] = path.rpartition("/")[0]
        return found


def checksums(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every email below a directory, as another program reads them."""
    listed = command(
        *("find", directory, "-type", "f", "-name", "*.eml"),
        *("-exec", "sha256sum", "-z", "--", "{}", "+"),
    )
    sums = {}
    for line in filter(None, listed.split("\0")):
        sha256, _, path = line.partition("  ")
        sums[str(Path(path).relative_to(directory))] = sha256
    return sums


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    home = Home(tmp_path_factory.mktemp("hostile"), "alice@example.org", "secret")
    with server_process("hostile") as server, home.mounted(server.url) as mount:
        yield Hostile(home, server, mount, server.control.dump())


def test_every_mail_is_in_exactly_its_mailboxes(hostile: Hostile) -> None:
    directories = hostile.directories()
    assert directories.keys() == {box.id for box in hostile.dump.mailboxes}
    shown: dict[str, Counter[str]] = {directory: Counter() for directory in directories.values()}
    for path, content in hostile.mount.contents().items():
        shown[path.rpartition("/")[0]][hashlib.sha256(content).hexdigest()] += 1
    assert shown == {
        directory: Counter(email.sha256 for email in hostile.dump.emails_in(mailbox_id))
        for mailbox_id, directory in directories.items()
    }


def test_every_mailbox_has_one_directory(hostile: Hostile) -> None:
    directories = hostile.directories()
    assert len(set(directories.values())) == len(hostile.dump.mailboxes)
    real = {
        str(path.relative_to(hostile.mount.path))
        for path in hostile.mount.path.rglob("*")
        if path.is_dir()
    }
    assert real == set(directories.values())
    # A directory is in that of its parent, where there is a parent and no cycle.
    for box in hostile.dump.mailboxes:
        if box.parent_id in directories and not box.id.startswith(("Pself", "Pcycle")):
            parent = directories[box.parent_id or ""]
            assert directories[box.id].rpartition("/")[0] == parent


def test_mailboxes_in_impossible_places(hostile: Hostile) -> None:
    at = hostile.directories()
    assert at["Porphan"] == "orphan"
    assert at["Porphan2"] == "orphan/below-the-orphan"
    assert at["Pself"] == "its-own-parent"
    assert {at["Pcycle1"], at["Pcycle2"]} == {"cycle-one", "cycle-one/cycle-two"}
    assert at["Pcycle3"] == "cycle-one/below-the-cycle"
    assert at["Pdeep39"].count("/") == 40
    by_name = {box.name: at[box.id] for box in hostile.dump.mailboxes if box.parent_id is None}
    for name in ("a/b", "..", ".", "/", "", "a\0b", "\n", "~", "%2e%2e%2f"):
        if name in by_name:
            assert "/" not in by_name[name]
            assert by_name[name] not in {"", ".", ".."}
    twins = [at[box.id] for box in hostile.dump.mailboxes if box.name == "twin"]
    assert len(set(twins)) == len(twins) == 5


def test_names_are_safe(hostile: Hostile) -> None:
    entries = hostile.mount.entries()
    del entries[""]
    siblings: Counter[tuple[str, str]] = Counter()
    for path in entries:
        parent, _, name = path.rpartition("/")
        siblings[parent, unicodedata.normalize("NFC", name.casefold())] += 1
        assert 0 < len(name.encode()) <= 255
        assert name == unicodedata.normalize("NFC", name)
        assert not UNSAFE.intersection(name), name
        assert not BIDI.intersection(name), name
        assert not any(unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"} for each in name)
        assert not name.startswith(("-", "."))
        if path.endswith(".eml"):
            assert re.match(r"\d{8}-\d{6}_[^_]+_[^_]+_[a-z2-7]{8}(_\d+)?\.eml$", name), name
    assert max(siblings.values()) == 1
    assert len(entries) == len(hostile.dump.mailboxes) + sum(
        len(email.mailbox_ids) for email in hostile.dump.emails
    )


def test_other_programs_find_what_is_listed(hostile: Hostile, tmp_path: Path) -> None:
    expected = Counter(email.sha256 for email in hostile.dump.emails for _ in email.mailbox_ids)
    shown = checksums(hostile.mount.path)
    assert Counter(shown.values()) == expected
    command("rsync", "-a", f"{hostile.mount.path}/", tmp_path / "copy")
    assert checksums(tmp_path / "copy") == shown
    # Nothing came to be beside the copy.
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    # Few file systems have the years after 2446; all else is what it was.
    again = command("rsync", "-ain", "--delete", f"{hostile.mount.path}/", tmp_path / "copy")
    late = ("Inbox/2446", "Inbox/9999", "Inbox/\n")
    assert not [line for line in again.splitlines(keepends=True) if not _is(line, late)]


def _is(line: str, beginnings: tuple[str, ...]) -> bool:
    return line.partition(" ")[2].startswith(beginnings)


def test_the_tree_is_the_same_after_the_cache_was_deleted(hostile: Hostile, tmp_path: Path) -> None:
    before = {path: portable(status) for path, status in hostile.mount.entries().items()}
    home = Home(tmp_path / "other", "alice@example.org", "secret")
    with home.mounted(hostile.server.url) as again:
        assert {path: portable(status) for path, status in again.entries().items()} == before
    shutil.rmtree(home.cache)
    with home.mounted(hostile.server.url, path=tmp_path / "elsewhere") as again:
        assert {path: portable(status) for path, status in again.entries().items()} == before
