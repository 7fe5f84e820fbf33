"""Programs that read much mail: each mail is fetched once, and every byte is right."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from tests import corpus
from tests.mail_server.account import MailAccount
from tests.mail_server.append import Message
from tests.mails import list_mails
from tests.mounts import Home, Mounted, command
from tests.stored_mail import START
from tests.waits import wait_until

pytestmark = pytest.mark.mount

_MANY = 400


@pytest.fixture(scope="module")
def large(new_mail_account: Callable[[], MailAccount]) -> MailAccount:
    """Four hundred different mails in the inbox."""
    account = new_mail_account()
    account.fill("INBOX", list_mails(0, _MANY))
    return account


@pytest.fixture
def mount(large: MailAccount, tmp_path: Path) -> Iterator[Mounted]:
    with Home(tmp_path, large.name, large.password).mounted(large.url) as mount:
        yield mount


def test_a_reader_is_read_ahead_of(large: MailAccount, mount: Mounted) -> None:
    paths = sorted((mount.path / large.inbox).iterdir())
    command("grep", "-c", "^Subject: ", *paths[:100])
    # More than the program has read.
    wait_until(lambda: mount.counts().blobs > 100)
    command("grep", "-rc", "^Subject: ", mount.path)
    assert mount.counts().blobs == _MANY


def test_a_second_read_needs_no_request(mount: Mounted) -> None:
    command("grep", "-rc", "^Subject: ", mount.path)
    before = mount.counts()
    command("grep", "-rc", "^Subject: ", mount.path)
    done = mount.counts() - before
    # `.jmapfs.json` is never in the page cache: its content, and its end.
    assert (done.reads, done.blobs, done.http["requests"]) == (2, 0, 0)


def test_rsync_fetches_each_mail_once(mount: Mounted, tmp_path: Path) -> None:
    command("rsync", "-a", f"{mount.path}/", tmp_path / "copy")
    counts = mount.counts()
    assert counts.blobs == _MANY
    assert command("diff", "-r", mount.path, tmp_path / "copy") == ""
    assert mount.counts().blobs == _MANY


@pytest.mark.parametrize("reader", ["xargs", "threads"])
def test_sixteen_readers_with_a_small_cache(
    mail_account: MailAccount, tmp_path: Path, reader: str
) -> None:
    """Every byte of the corpus is right, no matter who reads first and where it is cached."""
    account = mail_account
    mails = corpus.all_mails()[: account.most_mails]
    account.create_mailbox("Half")
    for name, mine in (("INBOX", mails[::2]), ("Half", mails[1::2])):
        account.fill(
            name,
            [
                Message(mail, received=START + timedelta(seconds=20 * number))
                for number, mail in enumerate(mine)
            ],
        )
    home = Home(tmp_path / "home", account.name, account.password)
    with home.mounted(account.url, "--cache-size", "1M") as mount:
        paths = [mount.path / path for path in sorted(mount.files())]
        if reader == "threads":
            with ThreadPoolExecutor(16) as threads:
                digests = list(threads.map(_digest, paths))
        else:
            names = tmp_path / "names"
            names.write_bytes(b"\0".join(map(os.fsencode, paths)))
            lines = command("xargs", "-0", "-a", names, "-P", "16", "-n", "40", "sha256sum")
            digests = [line.split()[0] for line in lines.splitlines()]
        assert sorted(digests) == sorted(hashlib.sha256(mail).hexdigest() for mail in mails)
        # Memory and the kernel hold what the cache cannot.
        assert mount.counts().blobs == account.downloads(mails)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
