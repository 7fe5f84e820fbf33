"""An account of whose objects single fields are odd: an odd object costs only itself."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from jmapfs.snapshot.manifest import MISSING
from jmapfs.snapshot.missing import read_missing
from tests.mails import random_mail
from tests.mounts import Home, Mounted, assert_refused, fixed
from tests.server import ServerProcess, server_process
from tests.server.quirks import ODD_VALUES
from tests.snapshot.commands import TakenSnapshot, require_whole, take, tree_of
from tests.waits import wait_until

pytestmark = pytest.mark.mount

UNUSABLE = 6  # the exit code for an answer that cannot be used
PARTIAL = 15  # the exit code of a snapshot that lacks mail

STRINGS = {"string", "date", "text"}

EMAIL_FIELDS = {
    "id": set[str](),
    "blobId": STRINGS,
    "size": {"number", "most"},
    "receivedAt": STRINGS,
    **{name: set(ODD_VALUES) for name in ("threadId", "mailboxIds", "keywords")},
    **{name: set(ODD_VALUES) for name in ("subject", "from", "messageId")},
}
"""The fields of an Email, with the kinds of values with which an email can still be shown."""

MAILBOX_FIELDS = (
    *("id", "name", "parentId", "role", "sortOrder", "isSubscribed", "myRights"),
    *("totalEmails", "unreadEmails", "totalThreads", "unreadThreads"),
)

SESSION_FIELDS = {
    "eventSourceUrl": "string",
    "accounts": "null",
    "capabilities": "huge",
}
"""One kind of value for some fields; tests/sync/test_odd_session.py has all kinds and fields."""


class OddAccount:
    """An account with an odd email for each field of Email and each kind of value, and an odd
    mailbox with an email for each field of Mailbox and each kind of value.

    An email is named after the field and kind that are odd, and so are its mailbox and the
    directory of that mailbox.
    """

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.mails: dict[str, bytes] = {}
        self._inbox = server.control.create_mailbox("Inbox", role="inbox")
        for number in range(3):
            self._add(f"good{number}", self._inbox)

    def add_odd_objects(self) -> None:
        values: dict[str, dict[str, str]] = {}
        for kind, text in ODD_VALUES.items():
            values |= {f"{field}-{kind}": {field: text} for field in EMAIL_FIELDS}
            values |= {f"box-{field}-{kind}": {field: text} for field in MAILBOX_FIELDS}
        control = self.server.control
        control.set_quirks(odd_values=values)
        for name in values:
            if name.startswith("box-"):
                control.create_mailbox(name, mailbox_id=name)
                self._add(f"in-{name}", name)
            else:
                self._add(name, self._inbox)

    def _add(self, email_id: str, mailbox_id: str) -> None:
        mail = random_mail(len(self.mails))
        self.server.control.add_email(mail, [mailbox_id], ["$seen"], email_id=email_id)
        self.mails[email_id] = mail

    @property
    def bad(self) -> list[str]:
        """The ids of the emails that cannot be shown."""
        return sorted(
            f"{field}-{kind}"
            for field, usable in EMAIL_FIELDS.items()
            for kind in ODD_VALUES
            if kind not in usable
        )

    @property
    def unreadable(self) -> list[str]:
        """The ids of the emails whose content the server does not have."""
        return [f"blobId-{kind}" for kind in sorted(STRINGS)]

    def place(self, email_id: str) -> str:
        """Return the directory of an email."""
        box, field, kind = ["", "", *email_id.removeprefix("in-").split("-")][-3:]
        if not box:
            # The odd mailbox id of one email is the odd id of a mailbox.
            unfiled = field == "mailboxIds"
            return (
                "box-id-string"
                if unfiled and kind == "object"
                else "unfiled"
                if unfiled
                else "Inbox"
            )
        match field:
            case "id":
                return "unfiled"
            case "parentId" if kind in STRINGS:
                # The odd parent of one mailbox is the odd id of another.
                return f"box-id-{kind}/box-parentId-{kind}"
            case "name":
                return "one"
            case _:
                return f"{box}-{field}-{kind}"

    def require_right(self, contents: dict[str, bytes]) -> None:
        """Check that each email is in its directory, with its bytes."""
        email_ids = {mail: email_id for email_id, mail in self.mails.items()}
        found = {}
        for path, content in contents.items():
            email_id = email_ids.pop(content)
            directory = path.rpartition("/")[0]
            if email_id.startswith("in-box-name-"):
                # The odd value itself is the name of this directory, or there is no name.
                assert directory.count("/") == 0
                directory = "one"
            found[email_id] = directory
        shown = self.mails.keys() - {*self.bad, *self.unreadable}
        assert found == {email_id: self.place(email_id) for email_id in shown}


def contents(mount: Mounted) -> dict[str, bytes]:
    """Read all emails that can be read; the size of one is corrected by the first READ."""
    found = {}
    for path in mount.files():
        for _ in range(2):
            # One email seems to have 9 PB: no program may ask for all of it at once.
            with contextlib.suppress(OSError), (mount.path / path).open("rb", buffering=0) as file:
                found[path] = file.read(2**20)
                break
    return found


def take_partial(home: Home, source: str | Path, destination: Path) -> TakenSnapshot:
    result = home.run("snapshot", "--json", "--skip-bad", source, destination)
    assert result.exit_code == PARTIAL, result
    return TakenSnapshot(json.loads(result.stdout))


@pytest.mark.parametrize("when", ["listed", "changed"])
def test_an_odd_object_costs_only_itself(home: Home, tmp_path: Path, when: str) -> None:
    with server_process("empty") as server:
        odd = OddAccount(server)
        if when == "listed":
            odd.add_odd_objects()
        with home.mounted(server.url) as mount:
            if when == "changed":
                odd.add_odd_objects()
                mount.sync()
            odd.require_right(contents(mount))
            files = mount.files()
            assert len(files) == len(odd.mails) - len(odd.bad)
            status = mount.status()
            assert (status["online"], status["error"]) == (True, None)
            assert [bad["id"] for bad in status["bad"]] == odd.bad
            mount.sync()
            assert mount.files().keys() == files.keys()
        with home.mounted(server.url) as mount:
            assert mount.files().keys() == files.keys()
        require_saved(odd, home, tmp_path / "snapshots")


def require_saved(odd: OddAccount, home: Home, destination: Path) -> None:
    """Check that snapshots name what is bad, save the rest, and that the second loads nothing."""
    refused = home.run("snapshot", odd.server.url, destination)
    assert refused.exit_code == PARTIAL
    assert f"email {odd.bad[0]}: " in refused.stderr
    assert not (destination / "latest").exists()
    first = take_partial(home, odd.server.url, destination)
    require_whole(first.path)
    missing = {mail.id for mail in read_missing(first.path / MISSING)}
    assert missing == {*odd.bad, *odd.unreadable}
    mail = first.path / "mail"
    odd.require_right(
        {str(path.relative_to(mail)): path.read_bytes() for path in mail.rglob("*.eml")}
    )
    odd.server.control.reset_counts()
    second = take_partial(home, odd.server.url, destination)
    assert second.manifest == first.manifest
    # What is not there is asked for again, and nothing else.
    blobs = {email.blob_id for email in odd.server.control.dump().emails}
    assert blobs.isdisjoint(odd.server.control.counts().blobs)


@pytest.mark.parametrize("field", SESSION_FIELDS)
def test_an_odd_field_of_the_session_has_a_default(home: Home, field: str) -> None:
    with server_process("empty") as server:
        inbox = server.control.create_mailbox("Inbox")
        server.control.add_email(random_mail(1), [inbox])
        values = {field: ODD_VALUES[SESSION_FIELDS[field]]}
        server.control.set_quirks(odd_values={"session": values})
        with home.mounted(server.url) as mount:
            assert list(mount.contents().values()) == [random_mail(1)]
            mount.sync()
            assert mount.status()["online"]


@pytest.mark.parametrize("field", ["apiUrl", "downloadUrl"])
def test_a_session_without_a_usable_url_is_refused(home: Home, field: str) -> None:
    with server_process("empty") as server:
        server.control.set_quirks(odd_values={"session": {field: "1e999"}})
        mountpoint = home.directory / "mnt"
        mountpoint.mkdir()
        result = home.run("mount", server.url, mountpoint)
        assert_refused(result, home, UNUSABLE, f"is not valid: {field} is not usable: 1e999")


def test_a_running_mount_that_meets_a_bad_email_stays_online(home: Home) -> None:
    with server_process("empty") as server:
        control = server.control
        inbox = control.create_mailbox("Inbox")
        control.add_email(random_mail(0), [inbox], email_id="M0")
        with home.mounted(server.url) as mount:
            control.set_quirks(odd_values={"M1": {"size": '"x"'}})
            control.add_email(random_mail(1), [inbox], email_id="M1")
            control.add_email(random_mail(2), [inbox], email_id="M2")
            wait_until(lambda: len(mount.files()) == 2)
            mount.sync()
            assert sorted(mount.contents().values()) == sorted([random_mail(0), random_mail(2)])
            account = mount.status()
            assert account["online"]
            assert account["error"] is None
            [bad] = account["bad"]
            assert (bad["id"], bad["reason"]) == ("M1", 'size is not usable: "x"')
            # It is asked for again with each sync.
            control.set_quirks(odd_values={})
            mount.sync()
            assert len(mount.contents()) == 3
            account = mount.status()
            assert account["bad"] == []


def test_strange_dates_and_text_are_saved_once(home: Home, tmp_path: Path) -> None:
    with server_process("empty") as server:
        control = server.control
        inbox = control.create_mailbox("Inbox", mailbox_id="P0")
        for number in range(4):
            control.add_email(random_mail(number), [inbox], email_id=f"M{number}")
        control.set_quirks(
            odd_values={
                "P0": {"name": r'"In\u0000b\ud800ox"'},
                "M0": {"receivedAt": '"32547-12-05T15:30:08Z"'},
                "M1": {"receivedAt": '"yesterday"', "size": f"{len(random_mail(1))}.0"},
                "M2": {"keywords": r'{"a\u0000b\udfff": true, "$seen": true}'},
                "M3": {"subject": r'"a\u0000b\ud800c\xff"'.replace(r"\xff", "\xff")},
            }
        )
        with home.mounted(server.url) as mount:
            expected = sorted(map(random_mail, range(4)))
            assert sorted(mount.contents().values()) == expected
            files = mount.files()
            assert [status.st_mtime for status in files.values()].count(0) == 2
            mount.sync()
            # The server lists the account again, and the index compares.
            control.forget_changes()
            control.set_keywords("M0", ["$flagged"])
            mount.sync()
            assert {path: fixed(status) for path, status in mount.files().items()} == {
                path: fixed(status) for path, status in files.items()
            }
        first = take(home, server.url, tmp_path / "snapshots")
        control.reset_counts()
        second = take(home, server.url, tmp_path / "snapshots")
        assert control.counts().blob_reads == 0
        assert second.manifest == first.manifest
        assert tree_of(second.path).keys() == {f"mail/{path}" for path in files}
        require_whole(second.path)


def test_unfiled_emails_come_and_go(home: Home, tmp_path: Path) -> None:
    with server_process("empty") as server:
        control = server.control
        inbox, work = control.create_mailbox("Inbox"), control.create_mailbox("Work")
        for number in range(3):
            control.add_email(random_mail(number), [inbox], email_id=f"M{number}")
        with home.mounted(server.url) as mount:
            assert sorted(path.name for path in mount.path.iterdir()) == [
                *(".jmapfs.json", "Inbox", "Work")
            ]
            control.set_quirks(odd_values={"M0": {"mailboxIds": "{}"}, "Plate": {"id": "null"}})
            control.set_keywords("M0", ["$flagged"])
            control.create_mailbox("Late", mailbox_id="Plate")
            control.move_email("M1", inbox, "Plate")
            control.create_mailbox("unfiled", mailbox_id="Preal")
            mount.sync()
            [unfiled] = [path for path in mount.path.glob("unfiled*") if any(path.iterdir())]
            # The server has a mailbox of that name, so both get a key.
            assert unfiled.name != "unfiled"
            assert sorted(path.read_bytes() for path in unfiled.iterdir()) == sorted(
                [random_mail(0), random_mail(1)]
            )
            snapshot = take(home, mount.path, tmp_path / "snapshots")
            require_whole(snapshot.path)
            assert [[one.id for one in mail.mailboxes] for mail in snapshot.mails].count([""]) == 2
            control.set_quirks(odd_values={})
            control.set_mailboxes("M0", [work])
            control.rename_mailbox("Preal", "real")
            mount.sync()
            assert {path.rpartition("/")[0] for path in mount.files()} == {
                *("Inbox", "Work", "Late")
            }
            assert len(mount.contents()) == 3
            assert not list(mount.path.glob("unfiled*"))
        second = take(home, server.url, tmp_path / "snapshots")
        assert home.run("verify", second.path).exit_code == 0
        dates = [path.name for path in sorted((tmp_path / "snapshots").glob("2*"))]
        moved = home.run("diff", tmp_path / "snapshots", *dates).stdout
        assert "0 added, 0 gone, 2 moved" in moved
