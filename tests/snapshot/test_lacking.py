"""Mail that the account has, but that cannot be had: what mounts and snapshots say about it.

Each account is mounted, brought up to date and copied twice, from the mount and from the account.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jmapfs.errors import IncompleteError
from tests.mails import new_emails, text_mail
from tests.mounts import Home, Mounted, Result
from tests.server import ServerProcess
from tests.snapshot.commands import TakenSnapshot, dates, require_whole, server_of, take

pytestmark = pytest.mark.mount

MAILS = 30
INCOMPLETE = IncompleteError.exit_code
NO_BLOB_ID = {"email_overrides": {"M3": {"blobId": None}}}


@dataclass(frozen=True)
class Faulty:
    """An account on a server that has faults."""

    server: ServerProcess
    home: Home

    def snapshot(self, source: str | Path, dest: Path, *options: str) -> Result:
        return self.home.run("snapshot", *options, source, dest)

    def incomplete(self, source: str | Path, dest: Path, *options: str) -> TakenSnapshot:
        """Take a snapshot that is published, but incomplete."""
        result = self.snapshot(source, dest, "--json", *options)
        assert result.exit_code == INCOMPLETE, result.stderr
        taken = TakenSnapshot(json.loads(result.stdout))
        require_whole(taken.path)
        assert " is incomplete: " in result.stderr
        return taken


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    with server_of(MAILS, copied="M8") as server:
        yield Faulty(server, Home(tmp_path / "home", "alice@example.org", "secret"))


def emails_of(mount: Mounted) -> int:
    """Return how many emails the tree shows; the contents of all must be readable."""
    inodes = {status.st_ino for status in mount.files().values()}
    assert all(mount.contents().values())
    return len(inodes)


def status_text(mount: Mounted) -> str:
    """Return what `jmapfs status` prints, without line breaks."""
    return " ".join(mount.home.run("status", mount.path).stdout.split())


def status_file(mount: Mounted) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((mount.path / ".jmapfs.json").read_bytes())
    return document


def require_unchanged_by_sync(mount: Mounted) -> None:
    """Bring the mount up to date. A backup must find nothing new in it."""
    file = mount.path / ".jmapfs.json"
    before = file.read_bytes(), file.stat().st_mtime_ns, mount.entries()
    mount.sync()
    assert (file.read_bytes(), file.stat().st_mtime_ns, mount.entries()) == before


def test_a_bad_email_costs_only_itself(faulty: Faulty, tmp_path: Path) -> None:
    faulty.server.control.set_quirks(**NO_BLOB_ID)
    url = faulty.server.url
    with faulty.home.mounted(url) as mount:
        [notice] = [line for line in mount.result.stderr.splitlines() if "M3" in line]
        assert "1 mail cannot be shown, such as email M3: " in notice
        [bad] = mount.status()["bad"]
        assert bad["id"] == "M3"
        assert "blobId" in bad["reason"]
        for _ in range(2):
            assert emails_of(mount) == MAILS - 1
            status = mount.status()
            assert (status["bad"], status["bad_count"], status["shortfall"]) == ([bad], 1, None)
            assert (status["online"], status["error"]) == (True, None)
            assert status_file(mount)["bad"] == [bad]
            assert f"M3: {bad['reason']}" in status_text(mount)
            require_unchanged_by_sync(mount)
        assert faulty.home.log().count("email M3") == 1
        for source in (mount.path, url):
            dest = tmp_path / f"of-{Path(source).name}"
            result = faulty.snapshot(source, dest, "--json")
            assert (result.exit_code, dates(dest)) == (INCOMPLETE, [])
            [missing] = json.loads(result.stdout)["missing"]
            assert missing == {
                "files": [],
                "email_id": "M3",
                "blob_id": None,
                "reason": bad["reason"],
            }
            result = faulty.snapshot(source, dest)
            assert f"jmapfs: email M3: {bad['reason']}\n" in result.stderr
            first = faulty.incomplete(source, dest, "--skip-bad")
            second = faulty.incomplete(source, dest, "--skip-bad")
            assert first.summary["mails"] == second.summary["mails"] == MAILS - 1
            assert [one["email_id"] for one in second.summary["missing"]] == ["M3"]
            assert second.summary["fetched"] == second.summary["new"] == 0
        # The email is not in this mailbox.
        assert take(faulty.home, mount.path / "Work", tmp_path / "work").summary["mails"] == 1
        # The email becomes good without a change of the account's state.
        faulty.server.control.set_quirks(email_overrides={})
        mount.sync()
        assert (mount.status()["bad"], emails_of(mount)) == ([], MAILS)
        assert "bad" not in status_file(mount)
        for source in (mount.path, url):
            taken = take(faulty.home, source, tmp_path / f"of-{Path(source).name}")
            assert taken.summary["mails"] == MAILS
            assert taken.summary["new"] == 1
    # The next mount knows the state of the last one.
    faulty.server.control.set_quirks(**NO_BLOB_ID)
    with faulty.home.mounted(url) as mount:
        assert emails_of(mount) == MAILS


def test_a_running_mount_meets_a_bad_email(faulty: Faulty) -> None:
    control = faulty.server.control
    inbox = control.dump().mailbox("Inbox").id
    with faulty.home.mounted(faulty.server.url) as mount:
        assert "cannot be shown" not in mount.result.stderr
        control.set_quirks(email_overrides={"bad": {"size": "many"}})
        control.add_email(text_mail(40), [inbox], email_id="bad")
        control.add_email(text_mail(41), [inbox], email_id="good")
        for count in (1, 2):
            mount.sync()
            status = mount.status()
            assert (status["online"], status["error"]) == (True, None)
            assert [bad["id"] for bad in status["bad"]] == ["bad"]
            assert emails_of(mount) == MAILS + count
            control.add_email(text_mail(41 + count), [inbox])
        control.destroy_email("bad")
        mount.sync()
        assert (mount.status()["bad"], emails_of(mount)) == ([], MAILS + 3)


def test_mail_that_is_counted_but_not_listed(faulty: Faulty, tmp_path: Path) -> None:
    faulty.server.control.set_quirks(unlisted_ids=["M3", "M8"])
    url = faulty.server.url
    text = "the server counts 30 mails, but only 28 can be listed (Inbox: 28 of 30, Work: 0 of 1)"
    with faulty.home.mounted(url) as mount:
        [notice] = [line for line in mount.result.stderr.splitlines() if "counts" in line]
        assert text in notice
        for _ in range(2):
            assert emails_of(mount) == MAILS - 2
            status = mount.status()
            shortfall = status["shortfall"]
            assert (shortfall["found"], shortfall["expected"]) == (MAILS - 2, MAILS)
            assert shortfall["mailboxes"] == [
                {"path": "Inbox", "found": 28, "expected": 30},
                {"path": "Work", "found": 0, "expected": 1},
            ]
            assert (status["online"], status["error"], status["bad"]) == (True, None, [])
            assert status_file(mount)["shortfall"] == shortfall
            assert text in status_text(mount)
            require_unchanged_by_sync(mount)
        for source in (mount.path, url):
            dest = tmp_path / f"of-{Path(source).name}"
            result = faulty.snapshot(source, dest)
            assert result.exit_code == INCOMPLETE
            [date] = dates(dest)
            assert result.stderr.splitlines()[-1] == (
                f"jmapfs: {date} is incomplete: {text}; the next run tries again"
            )
            second = faulty.incomplete(source, dest)
            assert (second.summary["mails"], second.summary["fetched"]) == (MAILS - 2, 0)
            assert second.summary["shortfall"]["expected"] == MAILS
            described = json.loads((second.path / "snapshot.json").read_bytes())
            assert described["shortfall"] == second.summary["shortfall"]
            assert described["missing"] == 0
            assert faulty.home.run("snapshots", dest).stdout.count(" incomplete ") == 2
            verified = faulty.home.run("verify", dest)
            assert verified.exit_code == 0, verified.stdout
            assert "made without 2 mails that the server counted" in verified.stderr
            compared = faulty.home.run("diff", dest, date, "latest")
            assert compared.exit_code == 0
            assert "was made without 2 mails" in compared.stderr
            pruned = faulty.home.run("prune", dest, "--keep-last", "1")
            assert pruned.exit_code == 0, pruned.stderr
            assert dates(dest) == [second.path.name]
        faulty.server.control.set_quirks(unlisted_ids=[])
        # A snapshot compares the numbers by itself.
        for source in (mount.path, url):
            taken = take(faulty.home, source, tmp_path / f"of-{Path(source).name}")
            assert (taken.summary["mails"], taken.summary["shortfall"]) == (MAILS, None)
        assert (mount.status()["shortfall"], emails_of(mount)) == (None, MAILS)
        assert "shortfall" not in status_file(mount)


def test_an_id_that_is_listed_but_never_found(faulty: Faulty, tmp_path: Path) -> None:
    faulty.server.control.set_quirks(phantom_ids=["Mghost"])
    url = faulty.server.url
    reason = "the server lists it, but does not find it"
    with faulty.home.mounted(url) as mount:
        assert f"such as email Mghost: {reason}" in mount.result.stderr
        require_unchanged_by_sync(mount)
        status = mount.status()
        assert [(bad["id"], bad["reason"]) for bad in status["bad"]] == [("Mghost", reason)]
        assert (status["online"], status["shortfall"], emails_of(mount)) == (True, None, MAILS)
        dest = tmp_path / "dest"
        refused = faulty.snapshot(url, dest)
        assert (refused.exit_code, dates(dest)) == (INCOMPLETE, [])
        assert f"email Mghost: {reason}" in refused.stderr
        faulty.incomplete(mount.path, dest, "--skip-bad")
        for source in (mount.path, url):
            second = faulty.incomplete(source, dest, "--skip-bad")
            assert (second.summary["mails"], second.summary["fetched"]) == (MAILS, 0)
        faulty.server.control.set_quirks(phantom_ids=[])
        take(faulty.home, mount.path, dest)
        assert mount.status()["bad"] == []


def test_the_first_snapshot_of_an_account_without_a_mount(faulty: Faulty, tmp_path: Path) -> None:
    faulty.server.control.set_quirks(unlisted_ids=["M7"], **NO_BLOB_ID)
    dest = tmp_path / "dest"
    result = faulty.snapshot(faulty.server.url, dest)
    assert (result.exit_code, dates(dest)) == (INCOMPLETE, [])
    assert "a mail cannot be downloaded: email M3: " in result.stderr
    for _ in range(2):
        taken = faulty.incomplete(faulty.server.url, dest, "--skip-bad")
        # The run that failed has fetched everything.
        assert (taken.summary["mails"], taken.summary["fetched"]) == (MAILS - 2, 0)
        assert [one["email_id"] for one in taken.summary["missing"]] == ["M3"]
        shortfall = taken.summary["shortfall"]
        assert (shortfall["found"], shortfall["expected"]) == (MAILS - 1, MAILS)
    described = faulty.home.run("verify", dest).stderr
    assert "a mail that could not be downloaded and a mail that the server counted" in described
    pruned = faulty.home.run("prune", dest, "--keep-last", "1")
    assert (pruned.exit_code, len(dates(dest))) == (0, 1)
    faulty.server.control.reset_quirks()
    taken = take(faulty.home, faulty.server.url, dest)
    assert (taken.summary["mails"], taken.summary["new"]) == (MAILS, 2)


def merge(faulty: Faulty) -> None:
    """Replace M3 as a server does that merges threads: a new id, and the old one lives on."""
    control = faulty.server.control
    [old] = [email for email in control.dump().emails if email.id == "M3"]
    inbox = control.dump().mailbox("Inbox").id
    control.set_quirks(
        ghost_ids=["M3"],
        fault_blob_ids=[old.blob_id],
        download_fault="not-found",
        blob_fault="not-found",
    )
    control.add_emails(new_emails([text_mail(3)], inbox, first=3))


def test_an_id_that_lives_on_after_a_merge_in_a_mount(faulty: Faulty, tmp_path: Path) -> None:
    with faulty.home.mounted(faulty.server.url) as mount:
        merge(faulty)
        first = take(faulty.home, mount.path, tmp_path / "dest")
        assert first.summary["mails"] == MAILS
        mount.sync()
        assert emails_of(mount) == MAILS
        second = take(faulty.home, mount.path, tmp_path / "dest")
        assert (second.summary["mails"], second.summary["fetched"]) == (MAILS, 0)
        of_account = take(faulty.home, faulty.server.url, tmp_path / "of-account")
        assert "M3" not in {mail.id for mail in of_account.mails}


def test_an_id_that_lives_on_after_a_merge_without_a_mount(faulty: Faulty, tmp_path: Path) -> None:
    # Only the index is made before the merge, so the content of M3 is not known.
    with faulty.home.mounted(faulty.server.url):
        pass
    merge(faulty)
    first = take(faulty.home, faulty.server.url, tmp_path / "dest")
    assert first.summary["mails"] == MAILS
    assert "M3" not in {mail.id for mail in first.mails}
    second = take(faulty.home, faulty.server.url, tmp_path / "dest")
    assert (second.summary["mails"], second.summary["fetched"]) == (MAILS, 0)


@pytest.mark.parametrize("of_mount", [True, False])
def test_lost_content_of_an_email_that_is_not_listed(
    faulty: Faulty, tmp_path: Path, *, of_mount: bool
) -> None:
    """The email is still counted, so only its content tells that it is gone."""
    control = faulty.server.control
    with faulty.home.mounted(faulty.server.url) as mount:
        [lost] = [email for email in control.dump().emails if email.id == "M3"]
        control.set_quirks(
            unlisted_ids=["M3"],
            fault_blob_ids=[lost.blob_id],
            download_fault="not-found",
            blob_fault="not-found",
        )
        source = mount.path if of_mount else faulty.server.url
        first = faulty.incomplete(source, tmp_path / "dest")
        assert first.summary["attempts"] == 2
        second = faulty.incomplete(source, tmp_path / "dest")
        assert second.summary["attempts"] == 1
        for taken in (first, second):
            assert (taken.summary["mails"], taken.summary["missing"]) == (MAILS - 1, [])
            assert taken.summary["shortfall"]["expected"] == MAILS
        assert emails_of(mount) == MAILS - 1
