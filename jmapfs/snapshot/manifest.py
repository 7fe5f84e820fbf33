"""Writing and reading the manifest of a snapshot, and the checksums of everything in it.

`SHA256SUMS` says nothing that the manifest does not say: it is there for `sha256sum -c`. But for
its last two lines, the checksums of the manifest and of `snapshot.json`: what they are is known
when they have been written, so no one byte of a snapshot can change without a checksum that tells.

What a snapshot says of itself: a line of `manifest.jsonl` for each mail, and `snapshot.json`.

Their members are those of JMAP (RFC 8621 §2 and §4), so that whoever puts the mail back one day
finds what `Email/import` asks for. README.md describes them; a change of what they mean is a new
`FORMAT`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final, Literal, Self

import msgspec

from jmapfs.errors import UNDECODABLE, AlteredFilesError, MissingFilesError, StorageError
from jmapfs.snapshot.files import created
from jmapfs.tree.export import ExportedMailbox

FORMAT: Final = 1

MAIL: Final = "mail"
MANIFEST: Final = "manifest.jsonl"
CHECKSUMS: Final = "SHA256SUMS"
DESCRIPTION: Final = "snapshot.json"
METADATA_FILES: Final = (MANIFEST, DESCRIPTION, CHECKSUMS)
"""What a snapshot has besides mail."""

# The kernel takes none that is longer (PATH_MAX).
_LONGEST_PATH: Final = 4096
_NO_NAMES: Final = frozenset({"", ".", ".."})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Links = Literal["hard", "reflink", "copy"]
"""How files of the same content share it: one file with several names, blocks, or nothing."""


class SavedPlace(msgspec.Struct, frozen=True, rename="camel"):
    """A mailbox that a mail is in, and the mail's file there.

    `path` is that of the mailbox in the tree, `file` is relative to the snapshot.
    """

    id: str
    path: str
    role: str | None
    file: str


class SavedMail(msgspec.Struct, frozen=True, rename="camel"):
    """A mail: `size` in bytes, `sha256` of the content in hexadecimal, `received_at` a UTCDate."""

    id: str
    blob_id: str
    thread_id: str
    received_at: str
    size: int
    sha256: str
    keywords: tuple[str, ...]
    mailboxes: tuple[SavedPlace, ...]


class Origin(msgspec.Struct, frozen=True, rename="camel"):
    """Where the mail of a snapshot is from; `directory` is empty for the whole account."""

    server: str
    account_id: str
    account_name: str
    username: str
    directory: str = ""


class Description(msgspec.Struct, frozen=True, rename="camel"):
    """One snapshot.

    `date` is its name; `email_state` the state of the account that it is (RFC 8620 §1.6.3).
    `files` counts names, `bytes` the content, each blob once. `new`, `gone` and `added_bytes` are
    in comparison to the snapshot `previous`.
    """

    format: int
    jmapfs: str
    date: str
    origin: Origin
    email_state: str
    mails: int
    files: int
    bytes: int
    previous: str | None
    new: int
    gone: int
    added_bytes: int
    links: Links
    mailboxes: tuple[ExportedMailbox, ...]


def utc_date(seconds: int) -> str:
    """Return seconds since 1970 as a UTCDate (RFC 8620 §1.4)."""
    # Not fromtimestamp: it knows no years before 1970 everywhere.
    return (_EPOCH + timedelta(seconds=seconds)).isoformat(timespec="seconds")[:-6] + "Z"


def is_mail_file(path: str) -> bool:
    """Tell whether a path is one that a file of mail has: in the snapshot, whatever it says."""
    if len(path) > _LONGEST_PATH or "\0" in path:
        return False
    first, *others = path.split("/")
    return first == MAIL and bool(others) and not _NO_NAMES & set(others)


SUMMED: Final = (MANIFEST, DESCRIPTION)

_BUFFER_BYTES: Final = 1 << 20
# More than the last two lines of the checksums.
_LAST_BYTES: Final = 1024

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(SavedMail)


class ManifestWriter:
    """Writes the three files into the directory of a snapshot, within `with`.

    Raises OSError where that cannot be done.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._manifest = _created(directory / MANIFEST)
        self._checksums = _created(directory / CHECKSUMS)
        self._digest = hashlib.sha256()
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._manifest, self._checksums):
            # What counts was written by `finish`; the rest of a failed one need not fit the disk.
            with contextlib.suppress(OSError):
                file.close()

    def add(self, mail: SavedMail) -> int:
        """Write the lines of a mail; return where that in the manifest begins."""
        line = _encoder.encode(mail) + b"\n"
        position, self._position = self._position, self._position + len(line)
        self._digest.update(line)
        self._manifest.write(line)
        self._checksums.writelines(
            checksum_line(mail.sha256, place.file) for place in mail.mailboxes
        )
        return position

    def flush(self) -> None:
        """Let the manifest be read as far as it is written."""
        self._manifest.flush()

    def finish(self, description: Description) -> None:
        """Write the description and the last checksums, and have all of it on the disk."""
        content = msgspec.json.format(_encoder.encode(description), indent=2) + b"\n"
        with _created(self._directory / DESCRIPTION) as file:
            file.write(content)
            _synced(file)
        self._checksums.write(checksum_line(self._digest.hexdigest(), MANIFEST))
        self._checksums.write(checksum_line(hashlib.sha256(content).hexdigest(), DESCRIPTION))
        _synced(self._manifest)
        _synced(self._checksums)


def is_intact(directory: Path) -> bool:
    """Tell whether a snapshot's manifest and description are what their checksums say."""
    try:
        with (directory / CHECKSUMS).open("rb") as checksums:
            last = ending_of(checksums)
        return last == [checksum_line(_digest(directory / file), file) for file in SUMMED]
    except OSError:
        return False


def ending_of(checksums: BinaryIO) -> list[bytes]:
    """Return the last lines of SHA256SUMS, those of the files `SUMMED`; raises OSError."""
    checksums.seek(max(0, os.fstat(checksums.fileno()).st_size - _LAST_BYTES))
    return checksums.read(_LAST_BYTES).splitlines(keepends=True)[-len(SUMMED) :]


def checksum_line(sha256: str, file: str) -> bytes:
    """Return a line of SHA256SUMS; no name in a tree has a character that it would escape."""
    return f"{sha256}  {file}\n".encode()


def read_description(directory: Path) -> Description:
    """Return what a snapshot says of itself.

    Raises:
        MissingFilesError: it says nothing.
        AlteredFilesError: it says something that no snapshot of ours says.
        StorageError: it is of a later jmapfs, or cannot be read.
    """
    path = directory / DESCRIPTION
    content = _content(path)
    try:
        description = msgspec.json.decode(content, type=Description)
    except UNDECODABLE as error:
        _refuse_later(path, content)
        raise AlteredFilesError(f"{path}: not the description of a snapshot: {error}") from error
    if description.format != FORMAT:
        _refuse_later(path, content)
        raise AlteredFilesError(f"{path}: there is no format {description.format}")
    return description


def read_manifest(directory: Path) -> Iterator[SavedMail]:
    """Yield the mails of a snapshot, in order.

    Raises, from the iteration:
        MissingFilesError: there is no manifest.
        AlteredFilesError: a line is not one of a manifest.
        StorageError: it cannot be read.
    """
    for _, mail in read_lines(directory):
        yield mail


def read_lines(directory: Path) -> Iterator[tuple[int, SavedMail]]:
    """Yield the mails of a snapshot, each with where its line begins; see `read_manifest`."""
    path = directory / MANIFEST
    position = number = 0
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            for number, line in enumerate(file, 1):  # noqa: B007 - named in the errors below
                yield position, decode_line(line)
                position += len(line)
    except FileNotFoundError:
        raise MissingFilesError(f"{path}: the manifest is missing") from None
    except UNDECODABLE as error:
        raise AlteredFilesError(f"{path}: line {number} is not of a manifest: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error


def decode_line(line: bytes) -> SavedMail:
    """Return the mail that a line of a manifest is; raises what is in `UNDECODABLE`."""
    return _decoder.decode(line)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingFilesError(f"{path}: missing, so this is no snapshot of jmapfs") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error


class _AnyDescription(msgspec.Struct):
    format: int


def _refuse_later(path: Path, content: bytes) -> None:
    try:
        number = msgspec.json.decode(content, type=_AnyDescription).format
    except UNDECODABLE:
        return
    if number > FORMAT:
        raise StorageError(f"{path}: made by a later jmapfs (format {number}): use that")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _created(path: Path) -> BinaryIO:
    return os.fdopen(created(path), "wb", buffering=_BUFFER_BYTES)


def _synced(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
