"""What only Cyrus can show: hostile names of mailboxes, and a backup of the whole corpus."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from pathlib import Path

import pytest

from tests import corpus
from tests.cyrus import Account, RefusedError
from tests.mounts import Home, command
from tests.stored_mail import store_mails

pytestmark = pytest.mark.mount


def test_a_second_borg_reads_at_most_one_file(cyrus_account: Account, tmp_path: Path) -> None:
    stored = store_mails(cyrus_account, corpus.all_mails())
    home = stored.home(tmp_path)
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


def test_hostile_mailbox_names(cyrus_account: Account, tmp_path: Path) -> None:
    account = cyrus_account
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
