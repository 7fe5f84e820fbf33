"""Changes between two snapshots: compared with a simple model, and case by case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from jmapfs.cli.snapshots_command import diff_command
from jmapfs.errors import AlteredFilesError, MissingFilesError, ReaderGoneError, UsageError
from jmapfs.snapshot.diff import (
    Change,
    KeywordsChanged,
    MailAdded,
    MailMoved,
    MailRemoved,
    changes_between,
)
from jmapfs.snapshot.manifest import (
    MANIFEST,
    ManifestWriter,
    SavedMail,
    SavedPlace,
    read_description,
)
from jmapfs.snapshot.repository import LATEST, Repository
from jmapfs.tree.export import ExportedMailbox
from tests.snapshot.handmade import Letter, make_snapshot

OLD, NEW = "2026-11-01T120000Z", "2026-11-02T120000Z"


def compared(destination: Path) -> list[Change]:
    return list(
        changes_between(
            Repository(destination).snapshot(OLD), Repository(destination).snapshot(NEW)
        )
    )


def run(destination: Path, *arguments: str) -> Result:
    return CliRunner().invoke(diff_command, [str(destination), *arguments])


def lines(destination: Path) -> list[str]:
    result = run(destination, OLD, NEW)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.splitlines()


def write(
    destination: Path, date: str, mails: Iterable[SavedMail], paths: Mapping[str, str]
) -> None:
    """Write only the metadata of a snapshot; `paths` are the paths of mailboxes by id."""
    if not (destination / "any").exists():
        make_snapshot(destination, "any", [])
    description = read_description(destination / "any")
    places = [ExportedMailbox(one, path, path, None, None, 0) for one, path in paths.items()]
    (destination / date).mkdir()
    with ManifestWriter(destination / date) as manifest:
        for mail in mails:
            manifest.add(mail)
        manifest.finish(msgspec.structs.replace(description, date=date, mailboxes=tuple(places)))


def mail(
    email: str,
    files: Mapping[str, str],
    keywords: str = "",
    *,
    blob: str = "B1",
    at: str = "2026-01-01T00:00:00Z",
) -> SavedMail:
    """Return a mail; `files` are its files by the ids of its mailboxes."""
    places = tuple(
        SavedPlace(one, file.rpartition("/")[0], None, f"mail/{file}")
        for one, file in files.items()
    )
    return SavedMail(email, blob, "T", at, 1, "0" * 64, tuple(keywords.split()), places)


# --- Models

letters = st.builds(
    Letter,
    st.integers(0, 30),
    st.frozensets(st.sampled_from(["Inbox", "Work", "Trash"]), min_size=1).map(tuple),
    st.frozensets(st.sampled_from(["$seen", "$flagged", "blue"])).map(tuple),
)
accounts = st.lists(letters, max_size=20, unique_by=lambda letter: letter.number).map(
    lambda some: sorted(some, key=lambda letter: letter.number)
)


def files_of(letter: Letter) -> tuple[str, ...]:
    return tuple(f"mail/{name}/{letter.number:04}.eml" for name in sorted(letter.mailboxes))


# Each example writes files, so it may take longer than the deadline.
@settings(deadline=None)
@given(accounts, accounts)
def test_it_agrees_with_a_model(old: list[Letter], new: list[Letter]) -> None:
    before = {letter.number: letter for letter in old}
    after = {letter.number: letter for letter in new}
    both = before.keys() & after.keys()
    with tempfile.TemporaryDirectory() as name:
        make_snapshot(Path(name), OLD, old)
        make_snapshot(Path(name), NEW, new)
        changes = compared(Path(name))
    assert {one.id: one.files for one in changes if isinstance(one, MailAdded)} == {
        f"M{number}": files_of(after[number]) for number in after.keys() - before
    }
    assert {one.id: one.files for one in changes if isinstance(one, MailRemoved)} == {
        f"M{number}": files_of(before[number]) for number in before.keys() - after
    }
    assert {one.id: (one.old, one.new) for one in changes if isinstance(one, MailMoved)} == {
        f"M{number}": (files_of(before[number]), files_of(after[number]))
        for number in both
        if set(before[number].mailboxes) != set(after[number].mailboxes)
    }
    assert {
        one.id: (one.files, set(one.set), set(one.cleared))
        for one in changes
        if isinstance(one, KeywordsChanged)
    } == {
        f"M{number}": (files_of(after[number]), flags - earlier, earlier - flags)
        for number in both
        if (flags := set(after[number].keywords)) != (earlier := set(before[number].keywords))
    }
    assert len(changes) == len({(type(one), one.id) for one in changes})
    assert [one.received_at for one in changes] == sorted(one.received_at for one in changes)


# The properties by which emails with the same content may differ.
looks = st.tuples(
    st.frozensets(st.sampled_from("ab"), min_size=1), st.frozensets(st.sampled_from("xy"))
)
emails = st.dictionaries(
    st.tuples(st.sampled_from(["B1", "B2"]), st.integers(0, 5)), looks, max_size=8
)
Emails = Mapping[tuple[str, int], tuple[frozenset[str], frozenset[str]]]


def saved(some: Emails) -> list[SavedMail]:
    return [
        mail(
            f"{blob}-{number}",
            {f"id-{name}": f"{name}/{blob}-{number}.eml" for name in sorted(names)},
            " ".join(sorted(keywords)),
            blob=blob,
        )
        for (blob, number), (names, keywords) in sorted(some.items())
    ]


@settings(deadline=None)
@given(emails, emails)
def test_emails_with_the_same_content_agree_with_a_model(old: Emails, new: Emails) -> None:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), OLD, saved(old), {})
        write(Path(name), NEW, saved(new), {})
        changes = compared(Path(name))
    for blob in ("B1", "B2"):
        before = Counter(look for (one, _), look in old.items() if one == blob)
        after = Counter(look for (one, _), look in new.items() if one == blob)
        kinds: defaultdict[type[Change], list[str]] = defaultdict(list)
        for change in changes:
            if change.blob_id == blob:
                kinds[type(change)].append(change.id)
        assert len(kinds[MailRemoved]) == max(0, before.total() - after.total())
        assert len(kinds[MailAdded]) == max(0, after.total() - before.total())
        # Emails that are equal in both snapshots are the same, and not reported.
        changed = {*kinds[MailMoved], *kinds[KeywordsChanged]}
        assert len(changed) == min((before - after).total(), (after - before).total())
        assert changed.isdisjoint(kinds[MailAdded])


# --- Case by case


def test_each_change_is_a_line(tmp_path: Path) -> None:
    old = [
        Letter(1),
        Letter(2, keywords=("$flagged",)),
        Letter(3),
        Letter(4, ("Inbox", "Work")),
        Letter(5, keywords=("$draft",)),
    ]
    new = [
        Letter(1),
        old[1].also(keywords=("$seen", "a")),
        old[3].also(mailboxes=("Work",)),
        old[4].also(mailboxes=("Trash",), keywords=()),
        Letter(6, ("Inbox", "Work")),
    ]
    make_snapshot(tmp_path, OLD, old)
    make_snapshot(tmp_path, NEW, new)
    assert lines(tmp_path) == [
        "*  Inbox/0002.eml  +$seen +a -$flagged",
        "-  Inbox/0003.eml",
        ">  Inbox/0004.eml, Work/0004.eml → Work/0004.eml",
        ">  Inbox/0005.eml → Trash/0005.eml",
        "*  Trash/0005.eml  -$draft",
        "+  Inbox/0006.eml, Work/0006.eml",
        "1 added, 1 gone, 2 moved, 2 flagged; 0 mailboxes renamed",
    ]


def test_a_renamed_mailbox_moves_no_mail(tmp_path: Path) -> None:
    write(
        tmp_path,
        OLD,
        [mail("1", {"w": "Work/1.eml"})],
        {"w": "Work", "i": "Inbox", "s": "Work/Sub"},
    )
    write(
        tmp_path, NEW, [mail("1", {"w": "Job/1.eml"})], {"w": "Job", "i": "Inbox", "s": "Job/Sub"}
    )
    assert lines(tmp_path) == [
        "R  Work → Job",
        "R  Work/Sub → Job/Sub",
        "0 added, 0 gone, 0 moved, 0 flagged; 2 mailboxes renamed",
    ]


def test_new_ids_alone_are_no_change(tmp_path: Path) -> None:
    write(tmp_path, OLD, [mail("1", {"w": "Work/1.eml"})], {"w": "Work"})
    write(tmp_path, NEW, [mail("9", {"v": "Work/1.eml"})], {"v": "Work"})
    assert compared(tmp_path) == []


def test_the_same_content_received_at_another_time_is_another_mail(tmp_path: Path) -> None:
    files = {"w": "Work/1.eml"}
    write(tmp_path, OLD, [mail("1", files, at="2026-01-01T00:00:00Z")], {})
    write(tmp_path, NEW, [mail("1", files, at="2026-01-01T00:00:01Z")], {})
    assert [type(change) for change in compared(tmp_path)] == [MailRemoved, MailAdded]


def test_one_of_two_mails_with_the_same_content_is_gone(tmp_path: Path) -> None:
    first, second = mail("1", {"w": "Work/1.eml"}, "$seen"), mail("2", {"i": "Inbox/1.eml"})
    write(tmp_path, OLD, [first, second], {})
    write(tmp_path, NEW, [second], {})
    assert lines(tmp_path)[0] == "-  Work/1.eml"
    assert len(compared(tmp_path)) == 1


def test_emails_with_the_same_content_are_matched_without_their_ids(tmp_path: Path) -> None:
    """All ids are new, and some are those of other emails before; the files match them."""
    work, inbox = {"w": "Work/1.eml"}, {"i": "Inbox/1.eml"}
    write(tmp_path, OLD, [mail("1", work), mail("2", inbox)], {"w": "Work", "i": "Inbox"})
    work, inbox = {"v": "Work/1.eml"}, {"j": "Inbox/1.eml"}
    write(tmp_path, NEW, [mail("1", inbox), mail("2", work)], {"v": "Work", "j": "Inbox"})
    assert compared(tmp_path) == []


def test_the_id_tells_which_of_two_equal_mails_was_moved(tmp_path: Path) -> None:
    write(tmp_path, OLD, [mail("1", {"w": "Work/1.eml"}), mail("2", {"i": "Inbox/1.eml"})], {})
    write(tmp_path, NEW, [mail("2", {"t": "Trash/1.eml"})], {})
    assert lines(tmp_path)[:-1] == [">  Inbox/1.eml → Trash/1.eml", "-  Work/1.eml"]


def test_years_may_have_any_length(tmp_path: Path) -> None:
    times = ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "10000-01-01T00:00:00Z"]
    mails = [mail(at, {"w": "Work/1.eml"}, at=at) for at in times]
    write(tmp_path, OLD, mails, {})
    write(tmp_path, NEW, mails[1:], {})
    assert [change.id for change in compared(tmp_path)] == times[:1]


def test_a_snapshot_has_no_changes_to_itself(tmp_path: Path) -> None:
    make_snapshot(tmp_path, OLD, [Letter(1), Letter(2)])
    result = run(tmp_path, OLD, OLD)
    assert result.stdout == "0 added, 0 gone, 0 moved, 0 flagged; 0 mailboxes renamed\n"


def test_latest_is_a_date(tmp_path: Path) -> None:
    make_snapshot(tmp_path, OLD, [])
    make_snapshot(tmp_path, NEW, [Letter(1)])
    (tmp_path / LATEST).symlink_to(NEW)
    assert run(tmp_path, OLD, LATEST).stdout == run(tmp_path, OLD, NEW).stdout
    assert run(tmp_path, LATEST, OLD).stdout.startswith("-  Inbox/0001.eml")


def test_json(tmp_path: Path) -> None:
    write(
        tmp_path,
        OLD,
        [mail("1", {"w": "Work/1.eml"}, "$seen"), mail("2", {"w": "Work/2.eml"}, blob="B2")],
        {"w": "Work", "i": "Inbox"},
    )
    write(
        tmp_path,
        NEW,
        [mail("1", {"i": "Inbox/1.eml"}, "$flagged"), mail("3", {"w": "Job/3.eml"}, blob="B3")],
        {"w": "Job", "i": "Inbox"},
    )
    common = {"id": "1", "blob_id": "B1", "received_at": "2026-01-01T00:00:00Z"}
    assert json.loads(run(tmp_path, OLD, NEW, "--json").stdout) == {
        "old": OLD,
        "new": NEW,
        "renamed_mailboxes": [{"id": "w", "old": "Work", "new": "Job"}],
        "changes": [
            {
                "change": "moved",
                **common,
                "old": ["mail/Work/1.eml"],
                "new": ["mail/Inbox/1.eml"],
            },
            {
                "change": "flagged",
                **common,
                "files": ["mail/Inbox/1.eml"],
                "set": ["$flagged"],
                "cleared": ["$seen"],
            },
            {
                "change": "gone",
                **common,
                "id": "2",
                "blob_id": "B2",
                "files": ["mail/Work/2.eml"],
            },
            {
                "change": "added",
                **common,
                "id": "3",
                "blob_id": "B3",
                "files": ["mail/Job/3.eml"],
            },
        ],
        "counts": {"added": 1, "gone": 1, "moved": 1, "flagged": 1},
    }


def test_json_without_changes(tmp_path: Path) -> None:
    make_snapshot(tmp_path, OLD, [])
    document = json.loads(run(tmp_path, OLD, OLD, "--json").stdout)
    assert (document["changes"], document["renamed_mailboxes"]) == ([], [])


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    hostile = "\x1b[2J\r\n+  Inbox/all is well.eml\u202e"
    write(tmp_path, OLD, [mail("1", {"w": f"W/{hostile}"}, "a")], {"w": f"old {hostile}"})
    write(tmp_path, NEW, [mail("1", {"v": f"V/{hostile}"}, hostile)], {"w": f"new {hostile}"})
    shown = lines(tmp_path)
    assert len(shown) == 4
    assert all(line.isprintable() for line in shown)
    assert r"\x1b[2J\r\n+  Inbox/all is well.eml\u202e" in shown[0]


def test_hostile_names_are_escaped_in_json(tmp_path: Path) -> None:
    hostile = "\x9b2J\x7f\u202e\U000e0001 \u65e5\u672c.eml"
    write(tmp_path, OLD, [], {"w": "W"})
    write(tmp_path, NEW, [mail("1", {"w": f"W/{hostile}"}, hostile)], {"w": hostile})
    result = run(tmp_path, OLD, NEW, "--json")
    assert all(line.isprintable() for line in result.stdout.splitlines())
    document = json.loads(result.stdout)
    assert document["changes"][0]["files"] == [f"mail/W/{hostile}"]
    assert document["renamed_mailboxes"][0]["new"] == hostile


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path, encoding: str) -> None:
    name = "W\xfc/\u65e5\u672c.eml"
    write(tmp_path, OLD, [], {})
    write(tmp_path, NEW, [mail("1", {"w": name})], {})
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "jmapfs", "diff", str(tmp_path), OLD, NEW]
    shown = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    first = shown.decode(encoding).splitlines()[0]
    assert first == f"+  {name}".encode(encoding, "backslashreplace").decode(encoding)
    # JSON is in UTF-8 everywhere (RFC 8259 section 8.1).
    shown = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, check=True
    ).stdout
    assert json.loads(shown)["changes"][0]["files"] == [f"mail/{name}"]


def test_a_reader_may_close_the_pipe_early(tmp_path: Path) -> None:
    make_snapshot(tmp_path, OLD, [])
    make_snapshot(tmp_path, NEW, [Letter(number) for number in range(2000)])
    command = [sys.executable, "-m", "jmapfs", "diff", str(tmp_path), OLD, NEW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == b"+  Inbox/0"
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_reader_may_close_the_pipe_before_the_first_line(tmp_path: Path) -> None:
    make_snapshot(tmp_path, OLD, [])
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jmapfs", "diff", str(tmp_path), OLD, OLD]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (ReaderGoneError.exit_code, b"")


# --- Damaged snapshots


def test_an_altered_manifest_is_reported(tmp_path: Path) -> None:
    make_snapshot(tmp_path, OLD, [Letter(1)])
    manifest = make_snapshot(tmp_path, NEW, [Letter(1)]) / MANIFEST
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes().replace(b'"keywords":[]', b'"keywords":["x"]'))
    result = run(tmp_path, OLD, NEW)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "*  Inbox/0001.eml  +x"
    assert f"{NEW} is damaged, so this may be wrong" in result.stderr


def test_an_invalid_manifest_is_an_error(tmp_path: Path) -> None:
    make_snapshot(tmp_path, OLD, [Letter(1)])
    manifest = make_snapshot(tmp_path, NEW, [Letter(1)]) / MANIFEST
    manifest.chmod(0o600)
    manifest.write_bytes(b"{}\n")
    assert isinstance(run(tmp_path, OLD, NEW).exception, AlteredFilesError)
    manifest.unlink()
    assert isinstance(run(tmp_path, OLD, NEW).exception, MissingFilesError)


@pytest.mark.parametrize("at", ["", "yesterday", "-001-01-01T00:00:00Z", "9" * 5000 + "-01"])
def test_an_invalid_time_is_an_error(tmp_path: Path, at: str) -> None:
    write(tmp_path, OLD, [mail("1", {"w": "Work/1.eml"}, at=at)], {})
    with pytest.raises(AlteredFilesError, match="is not a date"):
        compare_with_nothing(tmp_path)


def test_a_manifest_out_of_order_is_an_error(tmp_path: Path) -> None:
    mails: Sequence[SavedMail] = [letter.saved() for letter in (Letter(2), Letter(1))]
    write(tmp_path, OLD, mails, {})
    with pytest.raises(AlteredFilesError, match="not in order at the email 'M1'"):
        compare_with_nothing(tmp_path)


def compare_with_nothing(destination: Path) -> None:
    write(destination, NEW, [], {})
    compared(destination)


def test_manifests_are_read_only_as_far_as_needed(tmp_path: Path) -> None:
    make_snapshot(tmp_path, OLD, [Letter(number) for number in range(100)])
    manifest = make_snapshot(tmp_path, NEW, [Letter(number) for number in range(1, 100)]) / MANIFEST
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes() + b"no line\n")
    changes = changes_between(
        Repository(tmp_path).snapshot(OLD), Repository(tmp_path).snapshot(NEW)
    )
    assert next(changes).id == "M0"
    with pytest.raises(AlteredFilesError):
        list(changes)


@pytest.mark.parametrize("dates", [(OLD, "2026-01-01T000000Z"), (LATEST, OLD), ("notes", OLD)])
def test_a_missing_snapshot_is_a_usage_error(tmp_path: Path, dates: tuple[str, str]) -> None:
    make_snapshot(tmp_path, OLD, [])
    (tmp_path / "notes").mkdir()
    assert isinstance(run(tmp_path, *dates).exception, UsageError)
