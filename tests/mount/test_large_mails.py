"""The head of a large mail, read through a real mount."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cyrus import Account
from tests.mail_server.account import MailAccount
from tests.mails import fill_new_mailbox, text_mail
from tests.mounts import Home, Mounted, command
from tests.server import ServerProcess
from tests.waits import wait_until

pytestmark = pytest.mark.mount

# About.
_SIZE = 30_000_000
_HEAD = 1000


@pytest.fixture
def mail() -> bytes:
    lines = (f"{number:062}\r\n".encode() for number in range(_SIZE // 64))
    return text_mail(1) + b"".join(lines)


@pytest.fixture
def mount(server: ServerProcess, home: Home, mail: bytes) -> Iterator[Mounted]:
    """One large mail on a server without SHA-1 ids."""
    fill_new_mailbox(server.control, [mail])
    with home.mounted(server.url) as mount:
        yield mount


def file_of(mount: Mounted, mailbox: str = "Box") -> Path:
    [path] = (mount.path / mailbox).iterdir()
    return path


def downloaded(mount: Mounted) -> int:
    """Return how many bytes of content were downloaded, when nothing is downloaded any more."""
    seen = [-1]

    def quiet() -> bool:
        seen.append(mount.counts().http["bytes"])
        return len(seen) > 4 and len(set(seen[-4:])) == 1

    wait_until(quiet)
    return seen[-1]


def head(path: Path) -> bytes:
    return command("head", "-c", str(_HEAD), path).encode()


def test_head_downloads_little(mount: Mounted, mail: bytes) -> None:
    assert head(file_of(mount)) == mail[:_HEAD]
    assert downloaded(mount) < _SIZE // 8
    # The kernel has the pages.
    before = mount.counts()
    assert head(file_of(mount)) == mail[:_HEAD]
    assert (mount.counts() - before).reads == 0


def test_what_follows_is_downloaded_when_it_is_read(mount: Mounted, mail: bytes) -> None:
    path = file_of(mount)
    assert head(path) == mail[:_HEAD]
    with path.open("rb") as file:
        assert file.read(4_000_000) == mail[:4_000_000]
        assert downloaded(mount) < _SIZE // 2
        assert file.read() == mail[4_000_000:]
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(mail).digest()
    # Once for its head, and once as a whole.
    assert downloaded(mount) < _SIZE + _SIZE // 8


def test_the_head_does_not_wait_for_the_rest(
    server: ServerProcess, mount: Mounted, mail: bytes
) -> None:
    """The server sends half of the mail, and then nothing."""
    server.control.set_quirks(download_fault="stall")
    start = time.monotonic()
    assert head(file_of(mount)) == mail[:_HEAD]
    assert time.monotonic() - start < 5


def test_a_sha1_is_checked_before_the_head_is_served(
    fresh_account: Callable[[], Account], tmp_path: Path, mail: bytes
) -> None:
    """Cyrus has a SHA-1 in the blob id, which proves nothing before the last byte."""
    account = fresh_account()
    account.fill("INBOX", [mail])
    home = Home(tmp_path, account.name, account.password)
    with home.mounted(account.url) as mount:
        assert head(file_of(mount, "Inbox")) == mail[:_HEAD]
        assert downloaded(mount) == len(mail)
        assert file_of(mount, "Inbox").read_bytes() == mail
        assert downloaded(mount) == len(mail)


def test_the_head_of_a_large_mail_on_james(
    james_account: MailAccount, tmp_path: Path, mail: bytes
) -> None:
    """James has no SHA-1 in its blob ids, and announces the length of a download."""
    # James takes long for the whole.
    mail = mail[:8_000_000]
    james_account.fill("INBOX", [mail])
    home = Home(tmp_path, james_account.name, james_account.password)
    with home.mounted(james_account.url) as mount:
        assert head(file_of(mount, "INBOX")) == mail[:_HEAD]
        assert downloaded(mount) < len(mail) // 2
        assert file_of(mount, "INBOX").read_bytes() == mail
