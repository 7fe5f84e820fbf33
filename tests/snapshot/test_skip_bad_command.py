"""`jmapfs snapshot` names mail that cannot be downloaded; with --skip-bad it goes on without it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jmapfs.errors import IncompleteError
from tests.mails import new_emails
from tests.mounts import Home, Result
from tests.server import ServerProcess
from tests.snapshot.commands import TakenSnapshot, dates, require_whole, server_of

MAILS = 30


@dataclass(frozen=True)
class Faulty:
    """An account on a server of which some mail cannot be downloaded."""

    server: ServerProcess
    home: Home
    dest: Path

    def break_mails(self, *numbers: int) -> None:
        emails = {email.id: email.blob_id for email in self.server.control.dump().emails}
        self.server.control.set_quirks(
            download_fault="not-found" if numbers else None,
            blob_fault="not-found" if numbers else None,
            fault_blob_ids=[emails[f"M{number}"] for number in numbers],
        )

    def snapshot(self, *options: str, source: str | Path = "") -> Result:
        return self.home.run("snapshot", *options, source or self.server.url, self.dest)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    with server_of(MAILS, copied="M3") as server:
        yield Faulty(server, Home(tmp_path, "alice@example.org", "secret"), tmp_path / "dest")


def document(result: Result) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(result.stdout)
    return decoded


def test_all_bad_mails_are_named(faulty: Faulty) -> None:
    faulty.break_mails(*range(3, 18))
    result = faulty.snapshot()
    assert (result.exit_code, result.stdout) == (IncompleteError.exit_code, "")
    *named, more, last = result.stderr.splitlines()
    assert len(named) == 10
    for number, line in enumerate(named, 3):
        assert line.startswith("jmapfs: Inbox/2")
        assert f"_mail-{number - 1}_" in line
        assert line.endswith(f"the server does not have the blob B{number}")
    [partial] = faulty.dest.glob(".partial-*")
    assert more == f"jmapfs: and 5 more, all listed in {partial}/missing.jsonl"
    assert last.startswith("jmapfs: no snapshot was made: 15 mails cannot be downloaded: Inbox/2")
    assert dates(faulty.dest) == []


def test_json_of_a_failure(faulty: Faulty) -> None:
    faulty.break_mails(3, 20)
    result = faulty.snapshot("--json")
    assert result.exit_code == IncompleteError.exit_code
    failed = document(result)
    [partial] = faulty.dest.glob(".partial-*")
    assert set(failed) == {"error", "missing", "missing_file"}
    assert failed["missing_file"] == f"{partial}/missing.jsonl"
    assert f"jmapfs: {failed['error']}\n" == result.stderr
    first, second = failed["missing"]
    assert set(first) == {"files", "email_id", "blob_id", "reason"}
    assert (first["email_id"], second["email_id"]) == ("M3", "M20")
    assert [name.partition("/")[0] for name in first["files"]] == ["Inbox", "Work"]
    lines = (partial / "missing.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["M3", "M20"]


def test_hostile_names_are_escaped(faulty: Faulty) -> None:
    hostile = faulty.server.control.create_mailbox("x")
    faulty.server.control.add_emails(new_emails([b"Subject: \x1b[2J\xc2\x9b\r\n\r\n"], hostile))
    faulty.break_mails(MAILS + 1)
    for options in ((), ("--json",)):
        result = faulty.snapshot(*options)
        assert result.exit_code == IncompleteError.exit_code
        for output in (result.stdout, result.stderr):
            assert output.replace("\n", "").isprintable()


def test_skip_bad_from_end_to_end(faulty: Faulty) -> None:
    faulty.break_mails(3, 20)
    result = faulty.snapshot("--skip-bad", "--json")
    assert result.exit_code == IncompleteError.exit_code
    assert "is incomplete: 2 mails cannot be downloaded; the next run tries again" in result.stderr
    taken = TakenSnapshot(document(result))
    require_whole(taken.path)
    summary = taken.summary
    assert [one["email_id"] for one in summary["missing"]] == ["M3", "M20"]
    assert summary["missing_file"] == f"{taken.path}/missing.jsonl"
    assert len(list(taken.path.rglob("*.eml"))) == MAILS - 2
    described = json.loads((taken.path / "snapshot.json").read_bytes())
    assert described["missing"] == 2
    listed = faulty.home.run("snapshots", faulty.dest)
    assert " incomplete " in listed.stdout
    verified = faulty.home.run("verify", faulty.dest)
    assert verified.exit_code == 0
    assert "made without 2 mails" in verified.stderr
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=taken.path, check=True)
    pruned = faulty.home.run("prune", faulty.dest, "--keep-last", "1")
    assert "last, lacks the fewest mails, incomplete" in pruned.stdout
    # The terminal names them as well.
    text = faulty.snapshot("--skip-bad")
    assert text.exit_code == IncompleteError.exit_code
    assert ", 2 missing" in text.stdout
    assert text.stderr.count("jmapfs: Inbox/") == 2
    assert "/missing.jsonl" in text.stderr
    faulty.break_mails()
    result = faulty.snapshot("--skip-bad", "--json")
    assert result.exit_code == 0
    complete = TakenSnapshot(document(result))
    assert (complete.summary["missing"], complete.summary["missing_file"]) == ([], None)
    assert (complete.summary["fetched"], complete.summary["new"]) == (2, 2)
    require_whole(complete.path)
    compared = faulty.home.run("diff", faulty.dest, taken.path.name, "latest")
    assert f"{taken.path.name} was made without 2 mails" in compared.stderr
    assert "2 added, 0 gone" in compared.stdout
    pruned = faulty.home.run("prune", faulty.dest, "--keep-last", "1")
    assert pruned.exit_code == 0, pruned.stderr
    assert dates(faulty.dest) == [complete.path.name]


@pytest.mark.mount
def test_bad_mail_of_a_mount(faulty: Faulty) -> None:
    faulty.break_mails(3, 20)
    with faulty.home.mounted(faulty.server.url) as mount:
        result = faulty.snapshot("--json", source=mount.path)
        assert result.exit_code == IncompleteError.exit_code
        first, second = document(result)["missing"]
        assert (first["email_id"], second["email_id"]) == ("M3", "M20")
        assert first["reason"] == (
            "Input/output error: the content was refused or cannot be fetched; see the log of the"
            " mount"
        )
        result = faulty.snapshot("--json", "--skip-bad", source=mount.path)
        assert len(document(result)["missing"]) == 2
        faulty.break_mails()
        result = faulty.snapshot("--json", source=mount.path)
        assert result.exit_code == 0, result.stderr
        assert document(result)["fetched"] == 2
