"""The files that a snapshot should have according to its metadata files, and whether these agree.

SHA256SUMS has the checksums of the manifest and the description. These two have everything else
that SHA256SUMS has. So if SHA256SUMS and the manifest disagree, it is known which was altered.
An altered manifest is not used. Then the expected files are those in SHA256SUMS.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from jmapfs.errors import UNDECODABLE, AlteredFilesError, MissingFilesError
from jmapfs.private_files import open_reading
from jmapfs.snapshot.manifest import (
    CHECKSUMS,
    DESCRIPTION,
    MAIL,
    MANIFEST,
    METADATA_FILES,
    MISSING,
    SUMMED_FILES,
    Description,
    checksum_line,
    decode_line,
    is_mail_file,
    read_description,
    read_last_lines,
)
from jmapfs.snapshot.verify_read import Finding, read_digest, read_error
from jmapfs.snapshot.verify_record import Kind

_LINE: Final = re.compile(rb"([0-9a-f]{64})  ([^\n]+)\n")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_BUFFER_BYTES: Final = 1 << 20
# Longer than any valid line. An overwritten file may have no line breaks at all.
_MAX_LINE: Final = 16 << 20
# Enough for any number of mailboxes. The description is read at once.
_MAX_DESCRIPTION: Final = 64 << 20
# Two unrelated checksums have about 4 of their 64 digits in common, by chance.
_SIMILAR_DIGITS: Final = 32


class ExpectedMail(NamedTuple):
    """The files of one mail. `size` is None if unknown; `again` tells if the blob came before."""

    files: tuple[str, ...]
    size: int | None
    digest: bytes
    again: bool


class ExpectedContents:
    """The expected contents of a snapshot. Iterate over them only once, in worker threads.

    Findings about the metadata files are added to `findings`. `description` is None if it is
    damaged. `mails`, `files`, `directories` and `is_expected` are complete after the iteration.
    `directories` then also contains the directories of empty mailboxes, unless `description` is
    None. `is_complete` tells whether all expected files are known.

    A hash of each path and blob id is stored, about 50 bytes; see `InodeCache`. Raises StorageError
    if a newer version of jmapfs made the snapshot.
    """

    def __init__(self, directory: Path, findings: list[Finding]) -> None:
        self.mails = 0
        self.files = 0
        self.directories = {MAIL}
        self.is_complete = True
        self._directory = directory
        self._findings = findings
        self._found: set[str] = set()
        self._unreadable: set[str] = set()
        self._bytes = 0
        self._paths: set[int] = set()
        self._blobs: set[int] = set()
        sums = self._read_sums()
        self._manifest_has_sum = sums[MANIFEST] is not None
        self._uses_manifest = self._is_right(MANIFEST, sums[MANIFEST])
        self.description = (
            self._read_description() if self._is_right(DESCRIPTION, sums[DESCRIPTION]) else None
        )
        if self.description is not None:
            for mailbox in self.description.mailboxes:
                self._add_directory(f"{MAIL}/{mailbox.path}")
        self._missing_line = self._expect_missing_list()

    def is_expected(self, path: str) -> bool:
        """Return whether a file belongs to the snapshot."""
        if path == MISSING:
            return bool(self._missing_line)
        return path in METADATA_FILES or hash(path) in self._paths

    def __iter__(self) -> Iterator[ExpectedMail]:
        return self._by_manifest() if self._uses_manifest else self._by_checksums()

    def _by_manifest(self) -> Iterator[ExpectedMail]:
        sums = self._lines(CHECKSUMS)
        sums_agree = True
        for number, line in enumerate(self._lines(MANIFEST), 1):
            try:
                mail = decode_line(line)
            except UNDECODABLE:
                self._find_incomplete(MANIFEST, f"line {number} is not valid")
                continue
            files = tuple(place.file for place in mail.mailboxes)
            if not (_DIGEST.fullmatch(mail.sha256) and all(map(is_mail_file, files))):
                self._find_incomplete(MANIFEST, f"line {number} names files that no snapshot has")
                continue
            for file in files:
                sums_agree = next(sums, None) == checksum_line(mail.sha256, file) and sums_agree
            blob = hash(mail.blob_id)
            again = blob in self._blobs
            if not again:
                self._blobs.add(blob)
                self._bytes += mail.content_size
            yield self._expect(files, mail.content_size, mail.sha256, again=again)
        self.is_complete = self.is_complete and MANIFEST not in self._unreadable
        if self.is_complete:
            if self._missing_line:
                sums_agree = next(sums, None) == self._missing_line and sums_agree
            if not sums_agree or sum(1 for _ in sums) != len(SUMMED_FILES):
                self._find(CHECKSUMS, "altered", "disagrees with the manifest")
            self._compare_counts()

    def _by_checksums(self) -> Iterator[ExpectedMail]:
        last = []
        for number, line in enumerate(self._lines(CHECKSUMS), 1):
            match = _LINE.fullmatch(line)
            path = os.fsdecode(match[2]) if match else ""
            if match and path in SUMMED_FILES:
                last.append(path)
            elif line == self._missing_line:
                continue
            elif match and is_mail_file(path):
                yield self._expect((path,), None, match[1].decode(), again=False)
            else:
                self._find_incomplete(CHECKSUMS, f"line {number} is not valid")
        self.is_complete = self.is_complete and last == list(SUMMED_FILES)

    def _expect(
        self, files: tuple[str, ...], size: int | None, sha256: str, *, again: bool
    ) -> ExpectedMail:
        self.mails += 1
        self.files += len(files)
        for file in files:
            self._paths.add(hash(file))
            self._add_directory(file.rpartition("/")[0])
        return ExpectedMail(files, size, bytes.fromhex(sha256), again)

    def _expect_missing_list(self) -> bytes:
        """Verify `missing.jsonl`. Return its line in SHA256SUMS, or nothing if there is no line."""
        if self.description is not None:
            expected = self.description.missing_sha256
        else:
            expected = self._missing_sum()
        if not expected:
            return b""
        try:
            if read_digest(os.fspath(self._directory / MISSING))[0].hex() != expected:
                self._find(MISSING, "altered", "has other content")
        except OSError as error:
            self._find_unreadable(MISSING, error)
        return checksum_line(expected, MISSING)

    def _missing_sum(self) -> str:
        """Return the checksum of `missing.jsonl` in SHA256SUMS, or an empty string."""
        try:
            with self._open(CHECKSUMS) as file:
                match = _LINE.fullmatch(read_last_lines(file, len(SUMMED_FILES) + 1)[0])
        except (OSError, IndexError):
            return ""
        return match[1].decode() if match and match[2] == MISSING.encode() else ""

    def _read_sums(self) -> dict[str, str | None]:
        """Return the checksums of the other two files, from the last lines of SHA256SUMS."""
        sums: dict[str, str | None] = dict.fromkeys(SUMMED_FILES)
        try:
            with self._open(CHECKSUMS) as file:
                lines = read_last_lines(file)
        except OSError as error:
            self._find_unreadable(CHECKSUMS, error)
            return sums
        for path, line in zip(SUMMED_FILES, lines, strict=False):
            match = _LINE.fullmatch(line)
            if match and match[2] == path.encode():
                sums[path] = match[1].decode()
        if None in sums.values():
            self._find(CHECKSUMS, "altered", "does not end with the two checksums that it should")
        return sums

    def _is_right(self, path: str, expected: str | None) -> bool:
        """Return True if the file matches its checksum, or if the checksum itself is damaged."""
        try:
            digest = read_digest(os.fspath(self._directory / path))[0].hex()
        except OSError as error:
            self._find_unreadable(path, error)
            return False
        if expected is None or digest == expected:
            return True
        common = sum(one == other for one, other in zip(digest, expected, strict=True))
        if common > _SIMILAR_DIGITS:
            self._find(CHECKSUMS, "altered", f"has a damaged checksum of {path}")
            return True
        self._find(path, "altered", "does not match its checksum in SHA256SUMS")
        return False

    def _read_description(self) -> Description | None:
        try:
            if (self._directory / DESCRIPTION).lstat().st_size <= _MAX_DESCRIPTION:
                description = read_description(self._directory)
                if all(is_mail_file(f"{MAIL}/{one.path}") for one in description.mailboxes):
                    return description
        except (OSError, AlteredFilesError, MissingFilesError):
            pass
        self._find(DESCRIPTION, "altered", "is not the description of a snapshot")
        return None

    def _compare_counts(self) -> None:
        stated = self.description
        if stated is None or (self.mails, self.files, self._bytes) == (
            stated.mails,
            stated.files,
            stated.bytes,
        ):
            return
        path, other = (MANIFEST, DESCRIPTION)
        if self._manifest_has_sum:
            path, other = other, path
        self._find(path, "altered", f"disagrees with {other} on the mails, files and bytes")

    def _lines(self, path: str) -> Iterator[bytes]:
        try:
            with self._open(path) as file:
                while line := file.readline(_MAX_LINE):
                    yield line
        except OSError as error:
            self._find_unreadable(path, error)

    def _open(self, path: str) -> BinaryIO:
        return open_reading(self._directory / path, buffering=_BUFFER_BYTES)

    def _find_incomplete(self, path: str, detail: str) -> None:
        self.is_complete = False
        self._find(path, "altered", detail)

    def _find_unreadable(self, path: str, error: OSError) -> None:
        self._unreadable.add(path)
        self._find(path, *read_error(error))

    def _find(self, path: str, kind: Kind, detail: str) -> None:
        """Add the first finding about a file."""
        if path not in self._found:
            self._found.add(path)
            self._findings.append(Finding(path, kind, detail))

    def _add_directory(self, path: str) -> None:
        while path not in self.directories:
            self.directories.add(path)
            path = path.rpartition("/")[0]
