"""`verify --online` and `snapshot --check`: what differs from the server is found, by digests."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jmapfs.snapshot.manifest import SavedMail, read_manifest
from jmapfs.snapshot.verify_record import VerificationRecord
from tests.mounts import Home, Result
from tests.server import ServerProcess, server_process
from tests.snapshot.commands import TakenSnapshot, dates, require_whole, take
from tests.snapshot.verification import flip
from tests.stored_mail import StoredMail

MAILS = 30
CHECKABLE = [{"digests": ["sha"]}, {"digests": ["sha", "sha-256"]}]
MAIL = b"From: alice@example.org\r\nSubject: mail %03d\r\n\r\n%s\r\n"


def mails(count: int = MAILS, word: bytes = b"text") -> list[bytes]:
    return [MAIL % (number, word * (number + 1)) for number in range(count)]


@contextmanager
def serving(count: int = MAILS, **quirks: Any) -> Iterator[ServerProcess]:
    """Run a server with mails M1, M2 and so on, and with Blob/get."""
    with server_process("empty", **quirks) as server:
        dates = [f"2024-03-01T10:{number // 60:02}:{number % 60:02}Z" for number in range(count)]
        server.control.reset(mails(count), received_at=dates)
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, "alice@example.org", "secret")


def digests_of(snapshot: Path) -> dict[str, str]:
    return {mail.id: mail.sha256 for _, mail in read_manifest(snapshot)}


def verified(home: Home, server: ServerProcess, place: Path, *options: str) -> Result:
    server.control.reset_counts()
    return home.run("verify", *options, "--online", server.url, place)


def wrong_snapshot(home: Home, server: ServerProcess, destination: Path) -> tuple[Path, SavedMail]:
    """Make a snapshot in which one mail has the bytes of another mail of the same size.

    The manifest, the checksums and the sizes are all consistent with the wrong bytes.
    """
    [right] = (email for email in server.control.dump().emails if email.id == "M7")
    server.control.set_quirks(
        lie="other-mail", lie_equal_size=True, lie_blob_ids=[right.blob_id], digests=[]
    )
    taken = take(home, server.url, destination)
    server.control.set_quirks(lie=None)
    [wrong] = (mail for mail in taken.mails if mail.id == "M7")
    assert wrong.sha256 != right.sha256
    assert wrong.size == right.size
    return taken.path, wrong


# --- verify --online


@pytest.mark.parametrize("digests", [["sha"], ["sha", "sha-256"]])
@pytest.mark.parametrize("quick", [False, True])
def test_a_right_snapshot_has_the_digests_of_the_server(
    home: Home, tmp_path: Path, digests: list[str], *, quick: bool
) -> None:
    with serving(digests=digests) as server:
        taken = take(home, server.url, tmp_path / "dest")
        result = verified(home, server, taken.path, *(["--quick"] if quick else []))
        counts = server.control.counts()
    assert result.exit_code == 0, result.stdout + result.stderr
    assert f"{MAILS} compared with the server: no differences" in result.stdout
    # No mail is downloaded, and one request has all digests.
    assert counts.blob_reads == 0
    assert counts.endpoints["download"] == 0
    assert counts.methods == {"Blob/get": 1}
    assert counts.endpoints["api"] == 1


def test_many_mails_take_few_requests(home: Home, tmp_path: Path) -> None:
    with serving(1000) as server:
        taken = take(home, server.url, tmp_path / "dest")
        result = verified(home, server, taken.path)
        counts = server.control.counts()
    assert "1,000 compared with the server: no differences" in result.stdout
    assert counts.methods == {"Blob/get": 5}
    assert counts.blob_reads == 0


@pytest.mark.parametrize("quirks", CHECKABLE)
def test_a_mail_that_was_wrong_from_the_start_is_found(
    home: Home, tmp_path: Path, quirks: dict[str, Any]
) -> None:
    with serving() as server:
        snapshot, wrong = wrong_snapshot(home, server, tmp_path / "dest")
        # Without the server, nothing is wrong.
        assert home.run("verify", snapshot).exit_code == 0
        server.control.set_quirks(**quirks)
        result = verified(home, server, tmp_path / "dest")
        counts = server.control.counts()
    [place] = wrong.mailboxes
    assert result.exit_code == 11
    assert f"{snapshot.name}/{place.file}: is not what the server has" in result.stdout
    assert result.stdout.count("altered  ") == 1
    assert counts.blob_reads == 0
    # Email/get: do the ids still mean the same mail?
    assert counts.methods == {"Blob/get": 1, "Email/get": 1}
    record = VerificationRecord(tmp_path / "dest").find(snapshot.name)
    assert record is not None
    assert record.found_damage


def test_a_file_that_was_altered_later_is_found_once(home: Home, tmp_path: Path) -> None:
    with serving(digests=["sha"]) as server:
        taken = take(home, server.url, tmp_path / "dest")
        [place] = taken.mails[3].mailboxes
        flip(taken.path / place.file)
        result = verified(home, server, taken.path)
        quick = verified(home, server, taken.path, "--quick")
    assert result.exit_code == quick.exit_code == 11
    assert result.stdout.count(place.file) == quick.stdout.count(place.file) == 1
    assert "has other content" in result.stdout
    assert "is not what the server has" in quick.stdout


def test_sha1_ids_are_digests(home: Home, tmp_path: Path) -> None:
    with serving(sha1_blob_ids=True, digests=[]) as server:
        taken = take(home, server.url, tmp_path / "dest")
        assert verified(home, server, taken.path, "--quick").exit_code == 0
        [place] = taken.mails[3].mailboxes
        flip(taken.path / place.file)
        result = verified(home, server, taken.path, "--quick")
        assert server.control.counts().blob_reads == 0
    assert result.exit_code == 11
    assert place.file in result.stdout


@pytest.mark.parametrize("quirks", [{"digests": []}, {"blob_get": False}])
def test_a_server_without_digests_is_an_error(
    home: Home, tmp_path: Path, quirks: dict[str, Any]
) -> None:
    with serving(**quirks) as server:
        taken = take(home, server.url, tmp_path / "dest")
        result = verified(home, server, taken.path)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert "has no digests" in line
    assert "verify the snapshots without --online" in line


def test_mail_that_the_server_no_longer_has_is_counted(home: Home, tmp_path: Path) -> None:
    with serving() as server:
        taken = take(home, server.url, tmp_path / "dest")
        server.control.destroy_emails(["M1", "M2"])
        result = verified(home, server, taken.path)
        as_json = verified(home, server, taken.path, "--json")
    assert result.exit_code == 0
    assert "2 mails are no longer on the server" in result.stderr
    [document] = json.loads(as_json.stdout)["snapshots"]
    assert document["online"] == {"compared": MAILS - 2, "gone": 2, "undigested": 0}
    assert document["outcome"] == "good"


def test_ids_that_the_server_reuses_are_not_compared(home: Home, tmp_path: Path) -> None:
    with serving() as server:
        taken = take(home, server.url, tmp_path / "dest")
        days = [f"2025-01-{day + 1:02}T10:00:00Z" for day in range(MAILS)]
        server.control.reset(mails(word=b"new!"), received_at=days, equal_sizes=True)
        result = verified(home, server, taken.path)
    assert result.exit_code == 0
    assert f"{MAILS} mails are no longer on the server" in result.stderr


def test_all_snapshots_are_compared_and_each_digest_is_requested_once(
    home: Home, tmp_path: Path
) -> None:
    with serving() as server:
        for _ in range(3):
            take(home, server.url, tmp_path / "dest")
        result = verified(home, server, tmp_path / "dest")
        counts = server.control.counts()
    assert f"{3 * MAILS} compared with the server: no differences" in result.stdout
    assert counts.methods == {"Blob/get": 1}


def test_a_snapshot_of_another_account_is_not_compared(home: Home, tmp_path: Path) -> None:
    with serving() as server, serving() as other:
        taken = take(home, server.url, tmp_path / "dest")
        result = verified(home, other, taken.path)
    assert result.exit_code == 3
    assert "is a snapshot of account" in result.stderr


def test_snapshots_before_an_adoption_are_not_compared(home: Home, tmp_path: Path) -> None:
    with serving() as server, serving() as other:
        before = take(home, server.url, tmp_path / "dest")
        after = take(home, other.url, tmp_path / "dest", "--adopt")
        result = verified(home, other, tmp_path / "dest")
    assert result.exit_code == 0
    assert f"{before.path.name} is not compared with the server" in result.stderr
    assert after.path.name not in result.stderr
    assert f"{MAILS} compared with the server: no differences" in result.stdout


def test_a_server_that_fails_does_not_hide_what_was_found(home: Home, tmp_path: Path) -> None:
    with serving() as server:
        taken = take(home, server.url, tmp_path / "dest")
        [place] = taken.mails[3].mailboxes
        flip(taken.path / place.file)
        server.control.set_quirks(method_faults=[{"method": "Blob/get", "count": -1}])
        result = verified(home, server, taken.path)
    assert result.exit_code == 11
    assert place.file in result.stdout
    assert "serverFail" in result.stderr


def test_account_needs_online(home: Home, tmp_path: Path) -> None:
    with serving() as server:
        taken = take(home, server.url, tmp_path / "dest")
    result = home.run("verify", "--account", "x", taken.path)
    assert result.exit_code == 2
    assert "--online" in result.stderr


def test_a_snapshot_of_cyrus_is_compared(few: StoredMail, tmp_path: Path) -> None:
    home = few.home(tmp_path)
    taken = take(home, few.account.url, tmp_path / "dest")
    result = home.run("verify", "--online", few.account.url, taken.path)
    assert result.exit_code == 0, result.stderr
    assert f"{len(taken.mails):,} compared with the server: no differences" in result.stdout
    [place, *_] = taken.mails[5].mailboxes
    flip(taken.path / place.file)
    result = home.run("verify", "--quick", "--online", few.account.url, taken.path)
    assert result.exit_code == 11
    assert f"{place.file}: is not what the server has" in result.stdout


# --- snapshot --check


def taken_with_check(home: Home, server: ServerProcess, destination: Path) -> TakenSnapshot:
    return take(home, server.url, destination, "--check")


@pytest.mark.parametrize("quirks", CHECKABLE)
def test_a_snapshot_with_check_replaces_wrong_mail(
    home: Home, tmp_path: Path, quirks: dict[str, Any]
) -> None:
    with serving() as server:
        right = {email.id: email.sha256 for email in server.control.dump().emails}
        _, wrong = wrong_snapshot(home, server, tmp_path / "dest")
        server.control.set_quirks(**quirks)
        server.control.reset_counts()
        # Without the check, the wrong file is linked again.
        unchecked = take(home, server.url, tmp_path / "dest")
        assert digests_of(unchecked.path)[wrong.id] == wrong.sha256
        assert server.control.counts().blob_reads == 0
        checked = taken_with_check(home, server, tmp_path / "dest")
        assert server.control.counts().blob_reads == 1
        assert digests_of(checked.path) == right
        assert checked.summary["replaced"] == checked.summary["fetched"] == 1
        require_whole(checked.path)
        # Everything is right now.
        again = taken_with_check(home, server, tmp_path / "dest")
        assert again.summary["replaced"] == again.summary["fetched"] == 0
        assert verified(home, server, again.path).exit_code == 0


def test_a_download_that_differs_from_the_digest_is_no_mail(home: Home, tmp_path: Path) -> None:
    with serving() as server:
        [blob_id] = (e.blob_id for e in server.control.dump().emails if e.id == "M7")
        server.control.set_quirks(lie="other-mail", lie_equal_size=True, lie_blob_ids=[blob_id])
        result = home.run("snapshot", "--check", server.url, tmp_path / "dest")
        assert result.exit_code == 15
        assert "SHA-256" in result.stderr
        assert dates(tmp_path / "dest") == []
        server.control.set_quirks(lie=None)
        server.control.reset_counts()
        taken = taken_with_check(home, server, tmp_path / "dest")
        assert server.control.counts().blob_reads == 1
        assert taken.summary["taken_over"] == MAILS - 1
        assert verified(home, server, taken.path).exit_code == 0


def test_a_download_that_differs_can_be_skipped(home: Home, tmp_path: Path) -> None:
    with serving() as server:
        [blob_id] = (e.blob_id for e in server.control.dump().emails if e.id == "M7")
        server.control.set_quirks(lie="other-mail", lie_equal_size=True, lie_blob_ids=[blob_id])
        result = home.run("snapshot", "--check", "--skip-bad", server.url, tmp_path / "dest")
        assert result.exit_code == 15
        [date] = dates(tmp_path / "dest")
        [line] = (tmp_path / "dest" / date / "missing.jsonl").read_text().splitlines()
        missing = json.loads(line)
        assert missing["id"] == "M7"
        assert "SHA-256" in missing["reason"]
        server.control.set_quirks(lie=None)
        assert verified(home, server, tmp_path / "dest").exit_code == 0


def test_content_of_an_interrupted_run_is_compared(home: Home, tmp_path: Path) -> None:
    with serving() as server:
        wrong_id, broken_id = (
            email.blob_id for email in server.control.dump().emails if email.id in {"M7", "M20"}
        )
        server.control.set_quirks(
            lie="other-mail",
            lie_equal_size=True,
            lie_blob_ids=[wrong_id],
            digests=[],
            download_fault="not-found",
            blob_fault="not-found",
            fault_blob_ids=[broken_id],
        )
        assert home.run("snapshot", server.url, tmp_path / "dest").exit_code == 15
        server.control.reset_quirks()
        taken = taken_with_check(home, server, tmp_path / "dest")
        assert taken.summary["fetched"] == 2
        assert verified(home, server, taken.path).exit_code == 0


@pytest.mark.parametrize("quirks", [*CHECKABLE, {"digests": [], "sha1_blob_ids": True}])
def test_a_snapshot_with_check_keeps_what_the_server_has_lost(
    home: Home, tmp_path: Path, quirks: dict[str, Any]
) -> None:
    with serving(**quirks) as server:
        first = take(home, server.url, tmp_path / "dest")
        [blob_id] = (e.blob_id for e in server.control.dump().emails if e.id == "M7")
        server.control.set_quirks(
            download_fault="not-found", blob_fault="not-found", fault_blob_ids=[blob_id]
        )
        result = home.run("snapshot", "--check", "--json", server.url, tmp_path / "dest")
    assert result.exit_code == 0
    assert "1 mail was not compared" in result.stderr
    taken = TakenSnapshot(json.loads(result.stdout))
    assert digests_of(taken.path) == digests_of(first.path)


def test_a_snapshot_with_check_of_a_server_without_digests_is_an_error(
    home: Home, tmp_path: Path
) -> None:
    with serving(digests=[]) as server:
        result = home.run("snapshot", "--check", server.url, tmp_path / "dest")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert "has no digests" in line
    assert "make the snapshot without --check" in line


def test_a_snapshot_with_check_on_cyrus(few: StoredMail, tmp_path: Path) -> None:
    home = few.home(tmp_path)
    first = take(home, few.account.url, tmp_path / "dest", "--check")
    [place, *_] = first.mails[5].mailboxes
    # The size stays the same, so the next snapshot would link it.
    flip(first.path / place.file)
    second = take(home, few.account.url, tmp_path / "dest", "--check")
    assert second.summary["fetched"] == 1
    assert second.manifest == first.manifest
    require_whole(second.path)


@pytest.mark.mount
def test_a_mount_cannot_be_checked(home: Home, tmp_path: Path) -> None:
    with serving() as server, home.mounted(server.url) as mount:
        result = home.run("snapshot", "--check", mount.path, tmp_path / "dest")
    assert result.exit_code == 2
    assert "give the account" in result.stderr


# --- What verify has found


def test_the_next_snapshot_replaces_what_was_found(home: Home, tmp_path: Path) -> None:
    with serving() as server:
        right = {email.id: email.sha256 for email in server.control.dump().emails}
        wrong_snapshot(home, server, tmp_path / "dest")
        server.control.set_quirks(digests=["sha-256"])
        assert verified(home, server, tmp_path / "dest").exit_code == 11
        # What was found in the second in which a snapshot is made counts against that snapshot too.
        time.sleep(1.1)
        result = home.run("snapshot", "--json", server.url, tmp_path / "dest")
        assert "as with --check" in result.stderr
        taken = TakenSnapshot(json.loads(result.stdout))
        assert digests_of(taken.path) == right
        assert taken.summary["replaced"] == 1
        # The one after that needs no comparison.
        server.control.reset_counts()
        result = home.run("snapshot", "--json", server.url, tmp_path / "dest")
        assert "--check" not in result.stderr
        assert server.control.counts().methods["Blob/get"] == 0
        assert digests_of(TakenSnapshot(json.loads(result.stdout)).path) == right


def test_what_was_found_is_named_if_it_cannot_be_replaced(home: Home, tmp_path: Path) -> None:
    with serving() as server:
        wrong_snapshot(home, server, tmp_path / "dest")
        server.control.set_quirks(digests=["sha-256"])
        assert verified(home, server, tmp_path / "dest").exit_code == 11
        server.control.set_quirks(digests=[])
        result = home.run("snapshot", server.url, tmp_path / "dest")
    assert result.exit_code == 0
    assert "this snapshot may link to it" in result.stderr


def test_only_the_server_can_find_a_snapshot_good_again(home: Home, tmp_path: Path) -> None:
    def is_damaged() -> bool:
        return VerificationRecord(tmp_path / "dest").is_damaged(snapshot.name)

    with serving() as server:
        snapshot, _ = wrong_snapshot(home, server, tmp_path / "dest")
        server.control.set_quirks(digests=["sha-256"])
        assert verified(home, server, snapshot).exit_code == 11
        assert home.run("verify", snapshot).exit_code == 0
        assert is_damaged()
        # Now the server has no such mail any more.
        server.control.destroy_email("M7")
        assert verified(home, server, snapshot).exit_code == 0
        assert not is_damaged()
