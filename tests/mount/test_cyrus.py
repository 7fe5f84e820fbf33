"""Real mail on a real Cyrus: the mount shows what the server has."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import corpus
from tests.cyrus import Account, RefusedError
from tests.cyrus_mail import StoredMail, store_mails
from tests.mounts import Home, Mounted, command, fixed

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def stored(fresh_account: Callable[[], Account]) -> StoredMail:
    """The whole corpus."""
    return store_mails(fresh_account(), corpus.all_mails())


@pytest.fixture
def home(stored: StoredMail, tmp_path: Path) -> Home:
    return stored.home(tmp_path)


@pytest.fixture
def mount(stored: StoredMail, home: Home) -> Iterator[Mounted]:
    with home.mounted(stored.account.url) as mount:
        yield mount


def test_every_mail_is_byte_for_byte_in_its_mailboxes_and_nowhere_else(
    stored: StoredMail, mount: Mounted
) -> None:
    sizes = {path: status.st_size for path, status in mount.files().items()}
    assert mount.counts().blobs == 0
    shown: dict[str, list[bytes]] = defaultdict(list)
    for path, content in mount.contents().items():
        assert len(content) == sizes[path], path
        shown[path.rpartition("/")[0]].append(content)
    expected = {name: sorted(mails) for name, mails in stored.mails.items()}
    assert {name: sorted(mails) for name, mails in shown.items()} == expected
    # Each blob once, whatever the number of mailboxes it is in.
    distinct = {mail for mails in stored.mails.values() for mail in mails}
    assert mount.counts().blobs == len(distinct)


def test_listing_everything_fetches_nothing(mount: Mounted) -> None:
    before = mount.counts()
    command("ls", "-lR", mount.path)
    command("find", mount.path, "-size", "+4k", "-newermt", "2002-01-01")
    command("du", "-a", mount.path)
    command("find", mount.path, "-exec", "stat", "{}", "+")
    done = mount.counts() - before
    assert done.blobs == 0
    assert done.http["requests"] == 0
    assert done.reads == 0


@pytest.mark.parametrize("lost", ["nothing", "cache"])
def test_a_remount_shows_the_same_tree(stored: StoredMail, home: Home, lost: str) -> None:
    with home.mounted(stored.account.url) as mount:
        before = {path: fixed(status) for path, status in mount.entries().items()}
    assert len(before) > 1000
    if lost == "cache":
        shutil.rmtree(home.cache)
    with home.mounted(stored.account.url) as mount:
        assert {path: fixed(status) for path, status in mount.entries().items()} == before


def test_another_machine_shows_the_same_tree(
    stored: StoredMail, mount: Mounted, tmp_path: Path
) -> None:
    other = stored.home(tmp_path / "other")
    with other.mounted(stored.account.url) as second:
        assert {path: fixed(status) for path, status in second.entries().items()} == {
            path: fixed(status) for path, status in mount.entries().items()
        }


def test_a_mail_in_three_mailboxes_is_one_file(mount: Mounted) -> None:
    inodes = defaultdict(list)
    for path, status in mount.files().items():
        inodes[status.st_ino].append((path, status.st_nlink))
    several = {inode: names for inode, names in inodes.items() if len(names) > 1}
    assert len(several) == 3
    for names in several.values():
        assert [links for _, links in names] == [3, 3, 3]
        assert {path.rpartition("/")[0] for path, _ in names} == {"Inbox", "Work", "Lists/exmh"}
    assert all(names[0][1] == 1 for inode, names in inodes.items() if inode not in several)


def test_names_times_and_inodes_have_the_same_order(mount: Mounted) -> None:
    """Name order, readdir order, and (between seconds) inode order are one order."""
    for directory in {Path(path).parent for path in mount.files()}:
        listed = command("ls", "-U", mount.path / directory).splitlines()
        assert listed == sorted(listed, key=str.encode)
        mails = [name for name in listed if name.endswith(".eml")]
        seconds = [(mount.path / directory / name).stat().st_ino >> 29 for name in mails]
        assert seconds == sorted(seconds)


def test_a_second_rsync_reads_nothing(mount: Mounted, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    command("rsync", "-aH", f"{mount.path}/", target)
    before = mount.counts()
    statistics = command("rsync", "-aH", "--stats", f"{mount.path}/", target)
    done = mount.counts() - before
    assert "Number of regular files transferred: 0" in statistics
    assert (done.reads, done.blobs, done.fuse.get("open", 0)) == (0, 0, 0)
    assert command("diff", "-r", mount.path, target) == ""


def test_a_second_rsync_after_a_remount_reads_nothing(
    stored: StoredMail, home: Home, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    with home.mounted(stored.account.url) as mount:
        command("rsync", "-aH", f"{mount.path}/", target)
    with home.mounted(stored.account.url) as mount:
        command("rsync", "-aH", f"{mount.path}/", target)
        counts = mount.counts()
        assert (counts.reads, counts.blobs) == (0, 0)


def test_a_second_borg_reads_at_most_one_file(
    stored: StoredMail, home: Home, tmp_path: Path
) -> None:
    variables = {
        "BORG_BASE_DIR": str(tmp_path / "borg"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }
    repository = tmp_path / "repository"
    command("borg", "init", "-e", "none", repository, **variables)
    for archive in ("first", "second"):
        with home.mounted(stored.account.url) as mount:
            command("borg", "create", f"{repository}::{archive}", mount.path, **variables)
            status = mount.status()
            if archive == "second":
                assert (status["http"]["blobs"], status["cache"]["hits"]) == (0, 0)
                # Of `.jmapfs.json`, content and end.
                assert status["fuse"].get("read", 0) <= 2
    # It did back something up: the bytes of all mails come out of it again.
    command("borg", "export-tar", f"{repository}::second", tmp_path / "second.tar", **variables)
    restored = tmp_path / "restored"
    restored.mkdir()
    command("tar", "-xf", tmp_path / "second.tar", "-C", restored)
    found = {hashlib.sha256(path.read_bytes()).digest() for path in restored.rglob("*.eml")}
    expected = {hashlib.sha256(mail).digest() for mails in stored.mails.values() for mail in mails}
    assert found == expected


def test_changes_between_two_mounts(fresh_account: Callable[[], Account], tmp_path: Path) -> None:
    account = fresh_account()
    account.create_mailbox("Work")
    account.fill("INBOX", corpus.mails(20))
    home = Home(tmp_path, account.name, account.password)
    with home.mounted(account.url) as mount:
        before = mount.files()
    account.move("INBOX", [1], "Work")
    account.copy("INBOX", [2], "Work")
    account.expunge("INBOX", [3])
    account.store_flags("INBOX", [4], [r"\Seen"])
    account.rename_mailbox("Work", "Play")
    account.append("INBOX", corpus.varied(corpus.hostile_mails()[0], 7))
    with home.mounted(account.url) as mount:
        after = mount.files()
        assert mount.counts().http["requests"] <= 12
    inbox = sorted(path for path in before if path.startswith("Inbox/"))
    assert {path.partition("/")[0] for path in after} == {"Inbox", "Play"}
    assert len([path for path in after if path.startswith("Inbox/")]) == 19
    assert len([path for path in after if path.startswith("Play/")]) == 2
    known = {status.st_ino for status in before.values()}
    assert len({status.st_ino for status in after.values()} - known) == 1
    kept = set(before) & set(after)
    assert len(kept) == len(inbox) - 2
    assert all(fixed(before[path])[:2] == fixed(after[path])[:2] for path in kept)


HOSTILE = [
    "..",
    ".",
    "x" * 300,
    "-rf",
    "$(touch pwned)",
    "`id`;&|<>*?[a]{b}~!",
    "quotes ' and \"",
    "Été",
    "E\u0301te\u0301",
    "tab\tand\x1b[31mred",
    "right\u202eleft",
    "20240301-101500_x_y_abcdefgh.eml",
    ".jmapfs.json",
    "dot. ",
    "日本語",
    "⭐",
]


def test_hostile_mailbox_names(fresh_account: Callable[[], Account], tmp_path: Path) -> None:
    account = fresh_account()
    account.create_mailbox("Été")
    account.create_mailbox("E\u0301te\u0301")
    stored: dict[str, bytes] = {}
    for number, name in enumerate(HOSTILE):
        # What Cyrus refuses, the small server's hostile account has.
        with contextlib.suppress(RefusedError):
            mailbox_id = account.create_mailbox_by_jmap(name)
            mail = corpus.varied(corpus.hostile_mails()[1], number)
            account.append("INBOX", mail)
            inbox = account.mailbox_ids()["Inbox"]
            (email_id,) = set(account.email_ids(inbox)) - set(stored)
            stored[email_id] = mail
            account.add_to_mailbox(email_id, mailbox_id)
    assert len(stored) >= 8

    home = Home(tmp_path, account.name, account.password)
    with home.mounted(account.url) as mount:
        contents = mount.contents()
        mailboxes = {path: mail for path, mail in contents.items() if path[:6] != "Inbox/"}
        assert sorted(mailboxes.values()) == sorted(stored.values())
        assert len({path.rpartition("/")[0] for path in mailboxes}) == len(stored)
        directories = [
            path for path, status in mount.entries().items() if stat.S_ISDIR(status.st_mode)
        ]
        assert len(directories) == len(account.mailbox_ids()) + 1
        for path, content in contents.items():
            assert command("cat", mount.path / path).encode(errors="surrogateescape") == content
            assert (mount.path / path).resolve().is_relative_to(mount.path)
        target = tmp_path / "copy"
        command("rsync", "-a", f"{mount.path}/", target)
        copied = sorted(path.read_bytes() for path in target.rglob("*.eml"))
        assert copied == sorted(contents.values())
    assert not list(tmp_path.rglob("pwned"))
