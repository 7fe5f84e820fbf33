"""What should be in a snapshot, by the three files that tell of it; and whether these agree.

SHA256SUMS has the checksums of the manifest and the description, and the manifest has everything
else that is in SHA256SUMS. So where they disagree it can be told which of them has changed: a
manifest that has is not believed any more, and the files are known by SHA256SUMS alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from jmapfs.errors import UNDECODABLE, AlteredFilesError, MissingFilesError
from jmapfs.snapshot.findings import Finding, Kind
from jmapfs.snapshot.manifest import (
    CHECKSUMS,
    DESCRIPTION,
    MAIL,
    MANIFEST,
    SUMMED,
    Description,
    SavedMail,
    checksum_line,
    decode_line,
    ending_of,
    is_mail_file,
    read_description,
)
from jmapfs.snapshot.verify_read import HashSet, fault_of, opened, read_digest

_LINE: Final = re.compile(rb"([0-9a-f]{64})  ([^\n]+)\n")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
# No line is as long; a file that was overwritten may have no line breaks at all.
_LONGEST_LINE: Final = 16 << 20
# Enough for as many mailboxes as there are accounts with; it is read at once.
_LONGEST_DESCRIPTION: Final = 64 << 20
# Checksums of different contents agree in some 4 of their 64 digits, by chance.
_ALIKE_DIGITS: Final = 32


class ExpectedMail(NamedTuple):
    """Files of one content; `size` in bytes where it is known, `again` if the blob was listed."""

    files: tuple[str, ...]
    size: int | None
    digest: bytes
    again: bool


class ExpectedContents:
    """What a snapshot says is in it; findings about these three files go into `findings`.

    `description` is None where it cannot be believed. `mails`, `files`, `paths` and `directories`
    are complete when the mails have been iterated over: `directories` has those of all mailboxes
    if `knows_directories`, and `is_whole` tells whether all that should be there is in `paths`.

    Everything here is for worker threads.
    """

    def __init__(self, directory: Path, findings: list[Finding]) -> None:
        self.description: Description | None = None
        self.mails = 0
        self.files = 0
        self.paths = HashSet()
        self.directories = {MAIL}
        self.is_whole = True
        self._directory = directory
        self._findings = findings
        self._named: set[str] = set()
        self._unreadable: set[str] = set()
        self._bytes = 0
        self._blobs = HashSet()

    def open(self) -> None:
        """Read the description, and find out what of the rest can be believed.

        Raises:
            StorageError: the snapshot is of a later jmapfs.
        """
        sums = self._sums()
        self._manifest_is_sure = sums[MANIFEST] is not None
        self._believes_manifest = self._is_right(MANIFEST, sums[MANIFEST])
        if self._is_right(DESCRIPTION, sums[DESCRIPTION]):
            self._describe()
        if self.description is not None:
            for mailbox in self.description.mailboxes:
                self._add_directory(f"{MAIL}/{mailbox.path}")

    @property
    def knows_directories(self) -> bool:
        """Whether the directories of empty mailboxes are known."""
        return self.description is not None

    def __iter__(self) -> Iterator[ExpectedMail]:
        return self._by_manifest() if self._believes_manifest else self._by_checksums()

    def _by_manifest(self) -> Iterator[ExpectedMail]:
        comparison = _Comparison(self._lines(CHECKSUMS))
        for number, line in enumerate(self._lines(MANIFEST), 1):
            mail = _decoded(line)
            if mail is None:
                self._distrust(MANIFEST, f"line {number} is not of a manifest")
                continue
            files = tuple(place.file for place in mail.mailboxes)
            if not (_DIGEST.fullmatch(mail.sha256) and all(map(is_mail_file, files))):
                self._distrust(MANIFEST, f"line {number} names what is in no snapshot")
                continue
            comparison.add(mail)
            is_new = self._blobs.add(mail.blob_id)
            if is_new:
                self._bytes += mail.size
            yield self._listed(files, mail.size, mail.sha256, again=not is_new)
        self.is_whole = self.is_whole and MANIFEST not in self._unreadable
        if self.is_whole:
            if not comparison.is_right():
                self._find(CHECKSUMS, "altered", "is not what the manifest says")
            self._compare_counts()

    def _by_checksums(self) -> Iterator[ExpectedMail]:
        ending = []
        for number, line in enumerate(self._lines(CHECKSUMS), 1):
            match = _LINE.fullmatch(line)
            path = os.fsdecode(match[2]) if match else ""
            if match and path in SUMMED:
                ending.append(path)
            elif match and is_mail_file(path):
                yield self._listed((path,), None, match[1].decode(), again=False)
            else:
                self._distrust(CHECKSUMS, f"line {number} is not of a list of checksums")
        self.is_whole = self.is_whole and ending == list(SUMMED)

    def _listed(
        self, files: tuple[str, ...], size: int | None, sha256: str, *, again: bool
    ) -> ExpectedMail:
        self.mails += 1
        self.files += len(files)
        for file in files:
            self.paths.add(file)
            self._add_directory(file.rpartition("/")[0])
        return ExpectedMail(files, size, bytes.fromhex(sha256), again)

    def _sums(self) -> dict[str, str | None]:
        """Return the checksums of the two other files, by the last lines of SHA256SUMS."""
        sums: dict[str, str | None] = dict.fromkeys(SUMMED)
        try:
            with opened(self._directory / CHECKSUMS) as file:
                lines = ending_of(file)
        except OSError as error:
            self._find_unreadable(CHECKSUMS, error)
            return sums
        for path, line in zip(SUMMED, lines, strict=False):
            match = _LINE.fullmatch(line)
            if match and match[2] == path.encode():
                sums[path] = match[1].decode()
        if None in sums.values():
            self._find(CHECKSUMS, "altered", "does not end as it should")
        return sums

    def _is_right(self, path: str, expected: str | None) -> bool:
        """Tell whether a file can be believed: it is what its checksum says, or that is lost."""
        try:
            digest = read_digest(os.fspath(self._directory / path))[0].hex()
        except OSError as error:
            self._find_unreadable(path, error)
            return False
        if expected is None or digest == expected:
            return True
        if sum(one == other for one, other in zip(digest, expected, strict=True)) > _ALIKE_DIGITS:
            self._find(CHECKSUMS, "altered", f"has a damaged checksum of {path}")
            return True
        self._find(path, "altered", "is not what its checksum in SHA256SUMS says")
        return False

    def _describe(self) -> None:
        try:
            if (self._directory / DESCRIPTION).stat().st_size <= _LONGEST_DESCRIPTION:
                description = read_description(self._directory)
                if all(is_mail_file(f"{MAIL}/{one.path}") for one in description.mailboxes):
                    self.description = description
                    return
        except (OSError, AlteredFilesError, MissingFilesError):
            pass
        self._find(DESCRIPTION, "altered", "is not the description of a snapshot")

    def _compare_counts(self) -> None:
        said = self.description
        if said is None or (self.mails, self.files, self._bytes) == (
            said.mails,
            said.files,
            said.bytes,
        ):
            return
        path, other = (MANIFEST, DESCRIPTION)
        if self._manifest_is_sure:
            path, other = other, path
        self._find(path, "altered", f"has not the mails, files and bytes that {other} has")

    def _lines(self, path: str) -> Iterator[bytes]:
        try:
            with opened(self._directory / path) as file:
                while line := file.readline(_LONGEST_LINE):
                    yield line
        except OSError as error:
            self._find_unreadable(path, error)

    def _distrust(self, path: str, detail: str) -> None:
        self.is_whole = False
        self._find(path, "altered", detail)

    def _find_unreadable(self, path: str, error: OSError) -> None:
        self._unreadable.add(path)
        self._find(path, *fault_of(error))

    def _find(self, path: str, kind: Kind, detail: str) -> None:
        if path not in self._named:
            self._named.add(path)
            self._findings.append(Finding(path, kind, detail))

    def _add_directory(self, path: str) -> None:
        while path not in self.directories:
            self.directories.add(path)
            path = path.rpartition("/")[0]


class _Comparison:
    """SHA256SUMS, line by line beside the manifest."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._agrees = True

    def add(self, mail: SavedMail) -> None:
        """Compare the lines of the next mail."""
        for place in mail.mailboxes:
            line = next(self._lines, None)
            self._agrees = self._agrees and line == checksum_line(mail.sha256, place.file)

    def is_right(self) -> bool:
        """Tell whether all is there, and no more than the two last lines besides."""
        return self._agrees and sum(1 for _ in self._lines) == len(SUMMED)


def _decoded(line: bytes) -> SavedMail | None:
    try:
        return decode_line(line)
    except UNDECODABLE:
        return None
