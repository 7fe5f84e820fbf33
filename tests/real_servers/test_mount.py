"""Real mail on a real server: the mount shows what the server has."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import corpus
from tests.mail_server.account import MailAccount
from tests.mounts import Home, Mounted, command, fixed, portable
from tests.stored_mail import StoredMail, store_mails

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def stored(new_mail_account: Callable[[], MailAccount]) -> StoredMail:
    """The whole corpus, or its first mails."""
    account = new_mail_account()
    return store_mails(account, corpus.all_mails()[: account.most_mails])


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
    mails = [mail for mails in stored.mails.values() for mail in mails]
    assert mount.counts().blobs == stored.account.downloads(mails)


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
    same = portable if lost == "cache" else fixed
    with home.mounted(stored.account.url) as mount:
        before = {path: same(status) for path, status in mount.entries().items()}
    assert len(before) > sum(map(len, stored.mails.values()))
    if lost == "cache":
        shutil.rmtree(home.cache)
    with home.mounted(stored.account.url) as mount:
        assert {path: same(status) for path, status in mount.entries().items()} == before


def test_another_machine_shows_the_same_tree(
    stored: StoredMail, mount: Mounted, tmp_path: Path
) -> None:
    other = stored.home(tmp_path / "other")
    with other.mounted(stored.account.url) as second:
        assert {path: portable(status) for path, status in second.entries().items()} == {
            path: portable(status) for path, status in mount.entries().items()
        }


def test_a_mail_in_three_mailboxes_is_one_file(stored: StoredMail, mount: Mounted) -> None:
    inodes = defaultdict(list)
    for path, status in mount.files().items():
        inodes[status.st_ino].append((path, status.st_nlink))
    several = {inode: names for inode, names in inodes.items() if len(names) > 1}
    assert len(several) == 3
    for names in several.values():
        assert [links for _, links in names] == [3, 3, 3]
        directories = {path.rpartition("/")[0] for path, _ in names}
        assert directories == {stored.account.inbox, "Work", "Lists/exmh"}
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
