"""An account of whose objects single fields are odd: an odd object costs only itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mails import random_mail
from tests.mounts import Home, Mounted, fixed
from tests.server import ServerProcess, server_process
from tests.snapshot.commands import TakenSnapshot, require_whole, take, tree_of
from tests.waits import wait_until

pytestmark = pytest.mark.mount

PARTIAL = 15  # the exit code of a snapshot that lacks mail

KINDS = {
    "null": "null",
    "missing": "",
    "number": "5",
    "string": '"x"',
    "list": '["x"]',
    "object": '{"x": true}',
    "float": "1.5",
    "huge number": "1e999",
    "long number": "9" * 30,
    "invalid date": '"32547-12-05T15:30:08Z"',
    "not Unicode": '"a\\u0000b\\ud800c\xffd"',
}
"""The JSON text of each kind of odd value; an empty text removes the field."""

STRINGS = {"string", "invalid date", "not Unicode"}

EMAIL_FIELDS = {
    "id": set[str](),
    "blobId": STRINGS,
    "size": {"number"},
    "receivedAt": STRINGS,
    **{name: set(KINDS) for name in ("threadId", "mailboxIds", "keywords", "subject", "from")},
}
"""The fields of an Email, with the kinds of values with which an email can still be shown."""

MAILBOX_FIELDS = (
    *("id", "name", "parentId", "role", "sortOrder", "totalEmails", "unreadEmails"),
    *("isSubscribed", "myRights"),
)

SESSION_FIELDS = {
    "eventSourceUrl": "string",
    "username": "object",
    "accounts": "null",
    "accounts/Aprimary": "number",
    "primaryAccounts": "missing",
    "capabilities": "huge number",
}
"""One kind of value for some fields; tests/jmap/test_session.py has all kinds and fields."""


@dataclass(frozen=True)
class OddAccount:
    """An account with an email for each field of Email, and a mailbox with an email for each
    field of Mailbox. `kind` is the kind of value of all these fields.
    """

    server: ServerProcess
    kind: str
    digests: dict[str, str]

    @property
    def bad(self) -> list[str]:
        """The ids of the emails that cannot be shown."""
        return sorted(
            f"M-{field}" for field, kinds in EMAIL_FIELDS.items() if self.kind not in kinds
        )

    @property
    def places(self) -> dict[str, str]:
        """The digest of each email whose content is right, with its directory."""
        places = {}
        for email_id, digest in self.digests.items():
            place = "Inbox"
            if email_id in {"M-mailboxIds", "in-id"}:
                place = "unfiled"
            elif email_id == "in-parentId" and self.kind in STRINGS:
                # The odd id of one mailbox is the odd parent of another.
                place = "box-id/box-parentId"
            elif email_id.startswith("in-"):
                place = f"box-{email_id.removeprefix('in-')}"
            if email_id not in {"M-blobId", *self.bad}:
                places[digest] = place
        return places

    def require_right(self, contents: dict[str, bytes]) -> None:
        """Check that each email is in its directory, with its bytes."""
        found = {hashlib.sha256(data).hexdigest(): path for path, data in contents.items()}
        places = self.places
        named = self.digests["in-name"]
        # This mailbox has the odd value itself as its name, or none.
        assert "/" not in found.pop(named).rpartition("/")[0]
        del places[named]
        assert {digest: path.rpartition("/")[0] for digest, path in found.items()} == places


@pytest.fixture(params=KINDS)
def odd(request: pytest.FixtureRequest) -> Iterator[OddAccount]:
    kind = str(request.param)
    with server_process("empty") as server:
        control = server.control
        inbox = control.create_mailbox("Inbox", role="inbox")
        digests: dict[str, str] = {}

        def add(email_id: str, mailbox_id: str) -> None:
            mail = random_mail(len(digests))
            control.add_email(mail, [mailbox_id], ["$seen"], email_id=email_id)
            digests[email_id] = hashlib.sha256(mail).hexdigest()

        for number in range(3):
            add(f"good{number}", inbox)
        for field in EMAIL_FIELDS:
            add(f"M-{field}", inbox)
        for field in MAILBOX_FIELDS:
            mailbox_id = control.create_mailbox(f"box-{field}", mailbox_id=f"P-{field}")
            add(f"in-{field}", mailbox_id)
        values = {f"M-{field}": {field: KINDS[kind]} for field in EMAIL_FIELDS}
        values |= {f"P-{field}": {field: KINDS[kind]} for field in MAILBOX_FIELDS}
        control.set_quirks(odd_values=values)
        yield OddAccount(server, kind, digests)


def contents(mount: Mounted) -> dict[str, bytes]:
    """Read all emails that can be read; the size of one is corrected by the first READ."""
    found = {}
    for path in mount.files():
        for _ in range(2):
            with contextlib.suppress(OSError):
                found[path] = (mount.path / path).read_bytes()
                break
    return found


def take_partial(home: Home, source: str | Path, destination: Path) -> TakenSnapshot:
    result = home.run("snapshot", "--json", "--skip-bad", source, destination)
    assert result.exit_code == PARTIAL, result
    return TakenSnapshot(json.loads(result.stdout))


def test_an_odd_object_costs_only_itself(odd: OddAccount, home: Home, tmp_path: Path) -> None:
    with home.mounted(odd.server.url) as mount:
        odd.require_right(contents(mount))
        files = mount.files()
        assert len(files) == len(odd.digests) - len(odd.bad)
        account = mount.status()
        assert account["online"]
        assert [bad["id"] for bad in account["bad"]] == odd.bad
        mount.sync()
        assert mount.files().keys() == files.keys()
    with home.mounted(odd.server.url) as mount:
        assert mount.files().keys() == files.keys()
    destination = tmp_path / "snapshots"
    refused = home.run("snapshot", odd.server.url, destination)
    assert refused.exit_code == PARTIAL
    assert all(f"email {email_id}: " in refused.stderr for email_id in odd.bad), refused
    assert not (destination / "latest").exists()
    first = take_partial(home, odd.server.url, destination)
    require_whole(first.path)
    odd.require_right(
        {
            str(path.relative_to(first.path / "mail")): path.read_bytes()
            for path in (first.path / "mail").rglob("*.eml")
        }
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
        values = {field: KINDS[SESSION_FIELDS[field]]}
        server.control.set_quirks(odd_values={"session": values})
        with home.mounted(server.url) as mount:
            assert list(mount.contents().values()) == [random_mail(1)]
            mount.sync()
            assert mount.status()["online"]


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
