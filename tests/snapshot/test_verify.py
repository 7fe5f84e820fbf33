"""Verifying a snapshot: every change is found, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import subprocess
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jmapfs.errors import StorageError, UsageError
from jmapfs.private_files import open_reading
from jmapfs.snapshot import expected, verify, verify_read
from jmapfs.snapshot.manifest import SavedMail, SavedPlace, checksum_line
from jmapfs.snapshot.verify import snapshots_at
from jmapfs.snapshot.verify_read import InodeCache
from tests.snapshot.handmade import Letter, make_snapshot
from tests.snapshot.verification import (
    DATE,
    LETTERS,
    Progress,
    findings,
    flip,
    new_snapshot,
    overwrite,
    sha256sum_passes,
    verified,
    write_snapshot,
)

FILES_OF_MAIL_2 = [f"mail/{mailbox}/0002.eml" for mailbox in ("Inbox", "Work", "Work/Clients")]
METADATA = ["SHA256SUMS", "manifest.jsonl", "snapshot.json"]


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return new_snapshot(tmp_path / "mail store")


def files_of(snapshot: Path) -> list[str]:
    paths = (path for path in snapshot.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(snapshot)) for path in paths)


@contextlib.contextmanager
def restored(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    try:
        yield content
    finally:
        overwrite(path, content)


# --- Good snapshots


@pytest.mark.parametrize("quick", [False, True])
def test_a_good_snapshot_has_no_findings(snapshot: Path, *, quick: bool) -> None:
    result = verified(snapshot, quick=quick)
    assert (result.findings, result.remarks, result.outcome) == ([], [], "good")
    assert (result.mails, result.files) == (3, 5)
    assert result.bytes_read == (0 if quick else sum(len(one.bytes) for one in LETTERS))
    assert sha256sum_passes(snapshot)


def test_a_snapshot_without_mail_is_good(tmp_path: Path) -> None:
    assert verified(make_snapshot(tmp_path, DATE, [])).outcome == "good"


def test_mailboxes_may_be_empty(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / DATE, [], ["Inbox", "Work/Clients/Old"])
    assert verified(snapshot).outcome == "good"
    (snapshot / "mail/Work/Clients/Old").rmdir()
    assert findings(snapshot) == [("missing", "mail/Work/Clients/Old")]


def test_mails_with_the_same_content_are_good(tmp_path: Path) -> None:
    letters = [Letter(1, content=b"Same"), Letter(2, content=b"Same"), Letter(3, content=b"")]
    assert verified(make_snapshot(tmp_path, DATE, letters)).outcome == "good"


def test_progress_adds_up_to_everything(snapshot: Path) -> None:
    progress = Progress()
    verified(snapshot, progress=progress)
    assert (progress.mails, progress.size) == (3, sum(len(one.bytes) for one in LETTERS))


def test_many_mails_are_verified(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path, DATE, [Letter(number) for number in range(1500)])
    assert verified(snapshot).outcome == "good"
    damaged = [3, 700, 1400]
    for number in damaged:
        flip(snapshot / f"mail/Inbox/{number:04}.eml")
    assert findings(snapshot) == [("altered", f"mail/Inbox/{number:04}.eml") for number in damaged]


# --- Altered files


@pytest.fixture(scope="module")
def reusable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot for many examples; each restores what it changed."""
    return new_snapshot(tmp_path_factory.mktemp("reusable"))


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), mask=st.integers(1, 255))
def test_any_altered_byte_is_found(reusable: Path, data: st.DataObject, mask: int) -> None:
    file = data.draw(st.sampled_from(files_of(reusable)))
    with restored(reusable / file) as content:
        flip(reusable / file, data.draw(st.integers(0, len(content) - 1)), mask)
        names = FILES_OF_MAIL_2 if file in FILES_OF_MAIL_2 else [file]
        assert findings(reusable) == [("altered", name) for name in names]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_truncation_anywhere_is_found(reusable: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(files_of(reusable)))
    with restored(reusable / file) as content:
        overwrite(reusable / file, content[: data.draw(st.integers(0, len(content) - 1))])
        names = FILES_OF_MAIL_2 if file in FILES_OF_MAIL_2 else [file]
        assert findings(reusable) == [("altered", name) for name in names]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(file=st.sampled_from(METADATA), content=st.binary(max_size=300))
def test_any_content_of_a_metadata_file_is_a_finding(
    reusable: Path, file: str, content: bytes
) -> None:
    with restored(reusable / file):
        overwrite(reusable / file, content)
        assert findings(reusable) == [("altered", file)]


def test_an_edited_manifest_is_found(snapshot: Path) -> None:
    manifest = snapshot / "manifest.jsonl"
    overwrite(manifest, manifest.read_bytes().replace(b"$seen", b"$flag"))
    assert findings(snapshot) == findings(snapshot, quick=True) == [("altered", "manifest.jsonl")]


def test_an_edited_manifest_does_not_hide_an_added_file(snapshot: Path) -> None:
    manifest = snapshot / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    another = Letter(4).saved()
    overwrite(manifest, b"".join([*lines, msgspec.json.encode(another) + b"\n"]))
    (snapshot / another.mailboxes[0].file).write_bytes(Letter(4).bytes)
    assert findings(snapshot) == [("extra", "mail/Inbox/0004.eml"), ("altered", "manifest.jsonl")]


def test_an_edited_manifest_with_matching_checksums_is_found(snapshot: Path) -> None:
    """All three files agree; only the counts show it."""
    manifest = snapshot / "manifest.jsonl"
    first, *others = manifest.read_bytes().splitlines(keepends=True)
    del first
    overwrite(manifest, b"".join(others))
    sums = (snapshot / "SHA256SUMS").read_bytes().splitlines(keepends=True)
    sums[-2] = checksum_line(hashlib.sha256(b"".join(others)).hexdigest(), "manifest.jsonl")
    overwrite(snapshot / "SHA256SUMS", b"".join(sums[1:]))
    (snapshot / "mail/Inbox/0001.eml").unlink()
    assert findings(snapshot) == [("altered", "snapshot.json")]


def test_an_added_or_removed_checksum_is_found(snapshot: Path) -> None:
    sums = snapshot / "SHA256SUMS"
    lines = sums.read_bytes().splitlines(keepends=True)
    another = checksum_line("0" * 64, "mail/Inbox/0000.eml")
    for position in range(len(lines) + 1):
        overwrite(sums, b"".join([*lines[:position], another, *lines[position:]]))
        assert findings(snapshot) == [("altered", "SHA256SUMS")]
    for position in range(len(lines)):
        overwrite(sums, b"".join([*lines[:position], *lines[position + 1 :]]))
        assert findings(snapshot) == [("altered", "SHA256SUMS")]


@pytest.mark.parametrize(
    "file",
    [
        *("mail/../../outside", "/etc/passwd", "mail//0001.eml", "snapshot.json", "mail/\0"),
        *("mail", "", f"mail/{'a/' * 5000}0001.eml"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, file: str, *, quick: bool) -> None:
    (tmp_path / "outside").write_bytes(b"")
    good = Letter(1).saved()
    bad = msgspec.structs.replace(good, mailboxes=(SavedPlace("a", "A", None, file),))
    snapshot = write_snapshot(tmp_path / DATE, [bad, good], ["Inbox"])
    (snapshot / "mail/Inbox/0001.eml").write_bytes(b"as long as it was, or not")
    looked_at = []
    lstat = os.lstat

    def look(path: str) -> os.stat_result:
        looked_at.append(path)
        return lstat(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "lstat", look)
        assert findings(snapshot, quick=quick) == [
            ("altered", "mail/Inbox/0001.eml"),
            ("altered", "manifest.jsonl"),
        ]
    assert looked_at == [f"{snapshot}/mail/Inbox/0001.eml"]


@pytest.mark.parametrize("path", ["..", "", "Work/../..", "Work//Clients", "a/" * 5000 + "a"])
def test_a_description_cannot_name_directories_elsewhere(snapshot: Path, path: str) -> None:
    (snapshot / "SHA256SUMS").unlink()
    description = snapshot / "snapshot.json"
    told = msgspec.json.decode(description.read_bytes())
    told["mailboxes"][0]["path"] = path
    overwrite(description, msgspec.json.encode(told))
    assert findings(snapshot) == [("missing", "SHA256SUMS"), ("altered", "snapshot.json")]


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "x" * 64, "A" * 64])
def test_a_manifest_with_other_checksums_is_found(tmp_path: Path, sha256: str) -> None:
    bad = msgspec.structs.replace(Letter(1).saved(), sha256=sha256)
    snapshot = write_snapshot(tmp_path / DATE, [bad], ["Inbox"])
    assert findings(snapshot) == [("altered", "manifest.jsonl")]


@pytest.mark.parametrize("line", [-2, -1])
def test_a_damaged_checksum_does_not_discredit_its_file(snapshot: Path, line: int) -> None:
    """A valid checksum of no file: SHA256SUMS is altered, not the other file."""
    sums = snapshot / "SHA256SUMS"
    lines = sums.read_bytes().splitlines(keepends=True)
    lines[line] = (b"1" if lines[line].startswith(b"0") else b"0") + lines[line][1:]
    overwrite(sums, b"".join(lines))
    assert findings(snapshot) == [("altered", "SHA256SUMS")]


def test_deeply_nested_json_is_an_invalid_line(snapshot: Path) -> None:
    (snapshot / "SHA256SUMS").unlink()
    manifest = snapshot / "manifest.jsonl"
    deep = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    overwrite(manifest, deep + manifest.read_bytes())
    flip(snapshot / "mail/Inbox/0001.eml")
    assert findings(snapshot) == [
        ("missing", "SHA256SUMS"),
        ("altered", "mail/Inbox/0001.eml"),
        ("altered", "manifest.jsonl"),
    ]


def test_a_directory_instead_of_a_file_is_found(snapshot: Path) -> None:
    file = snapshot / "mail/Inbox/0001.eml"
    file.unlink()
    file.mkdir()
    flip(snapshot / "mail/Work/Clients/0003.eml")
    for quick, other in ((True, []), (False, [("altered", "mail/Work/Clients/0003.eml")])):
        assert findings(snapshot, quick=quick) == [("altered", "mail/Inbox/0001.eml"), *other]


@pytest.mark.parametrize("file", [*METADATA, "mail/Inbox/0001.eml"])
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    ("put", "what"),
    [
        (lambda path, moved: path.symlink_to(moved), "a symbolic link"),
        (lambda path, _: os.mkfifo(path), "a FIFO"),
        (lambda path, _: path.mkdir(), "a directory"),
    ],
)
def test_special_files_instead_of_mail_are_found(
    snapshot: Path, file: str, put: Callable[[Path, Path], None], what: str, *, quick: bool
) -> None:
    """Not even a link to the right content is accepted, and a FIFO does not block."""
    path = snapshot / file
    moved = snapshot.parent / "moved"
    path.rename(moved)
    put(path, moved)
    (finding,) = verified(snapshot, quick=quick).findings
    assert (finding.kind, finding.path) == ("altered", file)
    assert f"is {what}" in finding.detail


def test_a_link_instead_of_a_directory_is_found(snapshot: Path) -> None:
    moved = snapshot.parent / "moved"
    (snapshot / "mail/Work").rename(moved)
    (snapshot / "mail/Work").symlink_to(moved)
    assert ("altered", "mail/Work") in findings(snapshot)


def test_an_unreadable_file_is_found(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readv = os.readv

    def fail(descriptor: int, buffers: list[memoryview]) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink().match("Clients/0003.eml"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readv(descriptor, buffers)

    monkeypatch.setattr(os, "readv", fail)
    flip(snapshot / "mail/Inbox/0001.eml")
    result = verified(snapshot)
    assert [(one.path, one.detail) for one in result.findings] == [
        ("mail/Inbox/0001.eml", "has other content"),
        ("mail/Work/Clients/0003.eml", "cannot be read: Input/output error"),
    ]


def test_an_unreadable_directory_is_found(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files do not count as missing."""
    scandir = os.scandir

    def scan(path: str) -> object:
        if path.endswith("/mail/Work"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    (snapshot / "note").touch()
    assert findings(snapshot) == [("altered", "mail/Work"), ("extra", "note")]


def test_a_manifest_with_a_read_error_is_found(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the expected files is unknown."""

    def fail(path: Path, *, buffering: int) -> io.BufferedReader:
        if path.name == "manifest.jsonl":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_reading(path, buffering=buffering)

    monkeypatch.setattr(expected, "open_reading", fail)
    result = verified(snapshot)
    assert [finding[:2] for finding in result.findings] == [("manifest.jsonl", "altered")]
    assert result.remarks == ["extra files cannot be found: the lists of its files are damaged"]


def test_a_large_mail_is_not_read_into_memory(tmp_path: Path) -> None:
    size = 256 << 20
    mail = SavedMail(
        "M1", "B1", "T1", "2026-11-22T01:02:03Z", size, "0" * 64, (),
        (SavedPlace("id", "Inbox", None, "mail/Inbox/1.eml"),),
    )  # fmt: skip
    snapshot = write_snapshot(tmp_path / DATE, [mail], ["Inbox"])
    with (snapshot / "mail/Inbox/1.eml").open("wb") as file:
        file.truncate(size)
    tracemalloc.start()
    try:
        assert findings(snapshot) == [("altered", "mail/Inbox/1.eml")]
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("file", METADATA)
def test_large_metadata_is_not_read_into_memory(snapshot: Path, file: str) -> None:
    """Without its checksum it must not be read at once either."""
    if file != "SHA256SUMS":
        (snapshot / "SHA256SUMS").unlink()
    (snapshot / file).chmod(0o600)
    with (snapshot / file).open("r+b") as opened:
        opened.truncate(128 << 20)
    tracemalloc.start()
    try:
        assert ("altered", file) in findings(snapshot)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# --- Missing and extra files


@pytest.mark.parametrize("quick", [False, True])
def test_each_missing_file_is_found(snapshot: Path, *, quick: bool) -> None:
    for file in files_of(snapshot):
        moved = snapshot.parent / "moved"
        (snapshot / file).rename(moved)
        assert findings(snapshot, quick=quick) == [("missing", file)]
        assert not sha256sum_passes(snapshot)
        moved.rename(snapshot / file)
    assert findings(snapshot) == []


def test_without_a_manifest_the_checksums_are_used(snapshot: Path) -> None:
    (snapshot / "manifest.jsonl").unlink()
    flip(snapshot / "mail/Inbox/0001.eml")
    (snapshot / "mail/Work/0002.eml").unlink()
    (snapshot / "mail/Work/9.eml").touch()
    assert findings(snapshot) == [
        ("altered", "mail/Inbox/0001.eml"),
        ("missing", "mail/Work/0002.eml"),
        ("extra", "mail/Work/9.eml"),
        ("missing", "manifest.jsonl"),
    ]


def test_without_any_list_no_file_is_extra(snapshot: Path) -> None:
    (snapshot / "manifest.jsonl").unlink()
    (snapshot / "SHA256SUMS").unlink()
    result = verified(snapshot)
    assert [one.path for one in result.findings] == ["SHA256SUMS", "manifest.jsonl"]
    assert result.remarks == ["extra files cannot be found: the lists of its files are damaged"]


def test_a_directory_without_metadata_is_no_snapshot(snapshot: Path) -> None:
    for file in METADATA:
        (snapshot / file).unlink()
    with pytest.raises(UsageError):
        snapshots_at(snapshot)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("where", ["", "mail/", "mail/Inbox/"])
@pytest.mark.parametrize("name", ["new", ".hidden", "a\x1b[31mb\n", "\udcff", "latest"])
def test_extra_files_are_found(snapshot: Path, where: str, name: str, *, quick: bool) -> None:
    path = snapshot / f"{where}{name}"
    expected = [("extra", f"{where}{name}")]
    path.touch()
    assert findings(snapshot, quick=quick) == expected
    path.unlink()
    path.symlink_to("nowhere")
    assert findings(snapshot, quick=quick) == expected
    path.unlink()
    path.mkdir()
    assert findings(snapshot, quick=quick) == expected
    (path / "inner").touch()
    assert findings(snapshot, quick=quick) == [*expected, ("extra", f"{where}{name}/inner")]
    assert sha256sum_passes(snapshot)


def test_a_missing_directory_is_found(snapshot: Path) -> None:
    shutil.rmtree(snapshot / "mail/Work")
    assert findings(snapshot) == [
        ("missing", "mail/Work"),
        ("missing", "mail/Work/0002.eml"),
        ("missing", "mail/Work/Clients"),
        ("missing", "mail/Work/Clients/0002.eml"),
        ("missing", "mail/Work/Clients/0003.eml"),
    ]


def test_missing_mail_is_found(snapshot: Path) -> None:
    shutil.rmtree(snapshot / "mail")
    assert Counter(kind for kind, _ in findings(snapshot)) == {"missing": 4 + 5}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("move", [shutil.rmtree, lambda path: path.rename(f"{path}-pruned")])
def test_a_snapshot_removed_meanwhile_is_an_error(
    snapshot: Path, move: Callable[[Path], None], *, quick: bool
) -> None:
    progress = Progress(when_it_begins=lambda: move(snapshot))
    with pytest.raises(StorageError, match="was removed meanwhile"):
        verified(snapshot, quick=quick, progress=progress)


def test_a_snapshot_removed_before_is_an_error(snapshot: Path) -> None:
    shutil.rmtree(snapshot)
    with pytest.raises(StorageError, match="was removed meanwhile"):
        verified(snapshot)


# --- Hard links and copies


def test_a_file_with_several_names_is_read_once(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_reads(monkeypatch)
    assert verified(snapshot).outcome == "good"
    assert sorted(read) == sorted({(snapshot / file).stat().st_ino for file in mails_of(snapshot)})


def test_a_file_of_several_snapshots_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = [Letter(number) for number in range(1, 9)]
    one = make_snapshot(tmp_path, "2026-11-20T000000Z", letters[:6])
    two = make_snapshot(tmp_path, "2026-11-21T000000Z", letters[1:7], previous=one)
    three = make_snapshot(tmp_path, "2026-11-22T000000Z", letters[2:], previous=two)
    (tmp_path / "latest").symlink_to(three.name)
    (tmp_path / "2026-11-23T000000Z").mkdir()
    (tmp_path / "2026-11-24T000000Z").symlink_to(three)
    assert snapshots_at(tmp_path) == [one, two, three]

    read = count_reads(monkeypatch)
    inodes = InodeCache()
    results = [verified(directory, inodes=inodes) for directory in (one, two, three)]
    files = [directory / file for directory in (one, two, three) for file in mails_of(directory)]
    sizes = {file.stat().st_ino: file.stat().st_size for file in files}
    assert len(files) == 18
    assert sorted(read) == sorted(sizes)
    assert sum(result.bytes_read for result in results) == sum(sizes.values())
    assert [result.outcome for result in results] == ["good"] * 3

    flip(two / "mail/Inbox/0003.eml")
    inodes = InodeCache()
    results = [verified(directory, inodes=inodes) for directory in (one, two, three)]
    named = [[finding.path for finding in result.findings] for result in results]
    assert named == [["mail/Inbox/0003.eml"]] * 3
    assert sum(result.bytes_read for result in results) == sum(sizes.values())


@pytest.mark.parametrize("damaged", [0, 400])
def test_a_cancelled_verification_does_not_block_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: int
) -> None:
    """Its shared files still exist in other snapshots, and have not been read yet."""
    letters = [Letter(number) for number in range(1, 401)]
    one = make_snapshot(tmp_path, "2026-11-20T000000Z", letters)
    two = make_snapshot(tmp_path, "2026-11-21T000000Z", letters, previous=one)
    for file in mails_of(two)[:damaged]:
        flip(two / file)
    monkeypatch.setattr(verify, "_PART_MAILS", 1)
    read = InodeCache.read

    def read_late(self: InodeCache, parts: Any) -> None:
        # Another thread may have renamed it.
        with contextlib.suppress(FileNotFoundError):
            one.rename(f"{one}-pruned")
        read(self, parts)

    monkeypatch.setattr(InodeCache, "read", read_late)
    inodes = InodeCache()
    with pytest.raises(StorageError, match="was removed meanwhile"):
        verified(one, inodes=inodes)
    named = {finding.path for finding in verified(two, inodes=inodes).findings}
    assert named == set(mails_of(two)[:damaged])


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(("option", "remarks"), [("-a", 0), ("-r", 1)])
def test_a_copy_without_hard_links_is_good(
    snapshot: Path, option: str, remarks: int, *, quick: bool
) -> None:
    copy = snapshot.parent.parent / "a copy"
    subprocess.run(["cp", option, snapshot, copy], check=True)
    shutil.rmtree(snapshot)
    result = verified(copy, quick=quick)
    assert (result.outcome, len(result.remarks)) == ("good", remarks)
    flip(copy / "mail/Inbox/0001.eml")
    assert findings(copy) == [("altered", "mail/Inbox/0001.eml")]


def test_copies_by_jmapfs_are_no_remark(snapshot: Path) -> None:
    """On a file system without links, jmapfs itself has made the copies."""
    copy = snapshot.parent / "copy"
    subprocess.run(["cp", "-r", snapshot, copy], check=True)
    (copy / "SHA256SUMS").unlink()
    description = copy / "snapshot.json"
    overwrite(description, description.read_bytes().replace(b'"hard"', b'"copy"'))
    result = verified(copy, quick=True)
    assert ([one.path for one in result.findings], result.remarks) == (["SHA256SUMS"], [])


def test_only_the_altered_copy_is_found(snapshot: Path) -> None:
    copy = snapshot.parent / "copy"
    subprocess.run(["cp", "-r", snapshot, copy], check=True)
    flip(copy / FILES_OF_MAIL_2[1])
    assert findings(copy) == [("altered", FILES_OF_MAIL_2[1])]


def test_quick_reads_no_mail(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_reads(monkeypatch)
    flip(snapshot / "mail/Inbox/0001.eml")
    assert findings(snapshot, quick=True) == []
    overwrite(snapshot / "mail/Inbox/0001.eml", b"longer or shorter")
    assert findings(snapshot, quick=True) == [("altered", "mail/Inbox/0001.eml")]
    assert read == []


@pytest.mark.parametrize("file", ["mail/Inbox/0001.eml", "manifest.jsonl", "snapshot.json"])
def test_it_agrees_with_sha256sum(snapshot: Path, file: str) -> None:
    flip(snapshot / file)
    assert not sha256sum_passes(snapshot)


# --- Places


def test_a_later_format_is_an_error(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path, DATE, LETTERS)
    description = snapshot / "snapshot.json"
    overwrite(description, description.read_bytes().replace(b'"format": 1', b'"format": 2'))
    assert findings(snapshot) == [("altered", "snapshot.json")]
    (snapshot / "SHA256SUMS").unlink()
    with pytest.raises(StorageError, match="made by a later jmapfs"):
        verified(snapshot)


@pytest.mark.parametrize("left", METADATA)
def test_one_metadata_file_makes_a_snapshot(snapshot: Path, left: str) -> None:
    for file in set(METADATA) - {left}:
        (snapshot / file).unlink()
    assert snapshots_at(snapshot) == snapshots_at(snapshot.parent) == [snapshot]


def test_latest_is_followed(snapshot: Path) -> None:
    latest = snapshot.parent / "latest"
    latest.symlink_to(snapshot.name)
    assert snapshots_at(latest) == [snapshot]
    latest.unlink()
    latest.symlink_to("gone")
    with pytest.raises(UsageError, match="no such directory"):
        snapshots_at(latest)


def test_a_place_without_snapshots_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a snapshot nor"):
        snapshots_at(tmp_path)
    with pytest.raises(UsageError, match="no such directory"):
        snapshots_at(tmp_path / DATE)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a directory"):
        snapshots_at(tmp_path / "file")


def mails_of(snapshot: Path) -> list[str]:
    return [file for file in files_of(snapshot) if file.startswith("mail/")]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the inode of each mail that is read."""
    inodes: list[int] = []
    read_digest = verify_read.read_digest

    def read(path: str, *arguments: Any) -> tuple[bytes, int]:
        inodes.append(Path(path).stat().st_ino)
        return read_digest(path, *arguments)

    monkeypatch.setattr(verify_read, "read_digest", read)
    return inodes
