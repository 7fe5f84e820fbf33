"""The metadata files of a snapshot: what they contain, and reading and writing them.

    manifest.jsonl   one line for each mail, in order
    snapshot.json    the description of the snapshot
    SHA256SUMS       the checksums of everything, for `sha256sum -c`
    missing.jsonl    the mails that could not be downloaded, if there are any; see `missing`

The members of the JSON are those of JMAP (RFC 8621 §2 and §4), so that a restore finds what
`Email/import` needs. docs/snapshots.md describes them. If the meaning of a member changes, `FORMAT`
gets a new number.

The last two lines of `SHA256SUMS` are the checksums of the manifest and of `snapshot.json`.
The checksum of `missing.jsonl`, in the line before these, is also in `snapshot.json`. Everything
else in `SHA256SUMS` is also in the manifest. So every changed byte of a snapshot can be detected by
a checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from jmapfs.errors import UNDECODABLE, AlteredFilesError, MissingFilesError, StorageError
from jmapfs.jmap.identity import AccountIdentity, merge_origins
from jmapfs.private_files import create_file, open_reading
from jmapfs.snapshot.files import Links
from jmapfs.tree.export import ExportedMailbox
from jmapfs.tree.status_file import ShortfallStatus

FORMAT: Final = 1

MAIL: Final = "mail"
MANIFEST: Final = "manifest.jsonl"
CHECKSUMS: Final = "SHA256SUMS"
DESCRIPTION: Final = "snapshot.json"
MISSING: Final = "missing.jsonl"
"""The mails that are not in the snapshot; see `missing`. A complete snapshot has no such file."""
METADATA_FILES: Final = (MANIFEST, DESCRIPTION, CHECKSUMS)
"""The files of a snapshot besides the mail."""
SUMMED_FILES: Final = (MANIFEST, DESCRIPTION)
"""The files that the last lines of SHA256SUMS are about, in this order."""

# PATH_MAX of the kernel.
_MAX_PATH: Final = 4096
_INVALID_NAMES: Final = frozenset({"", ".", ".."})
_BUFFER_BYTES: Final = 1 << 20
# The last three lines of SHA256SUMS are shorter than this.
_TAIL_BYTES: Final = 1024
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DATE_FORMAT: Final = "%Y-%m-%dT%H%M%SZ"


class SavedPlace(msgspec.Struct, frozen=True, rename="camel"):
    """A mailbox that contains a mail, and the file of the mail in that mailbox.

    `path` is the path of the mailbox in the tree, `file` is relative to the snapshot.
    """

    id: str
    path: str
    role: str | None
    file: str


class SavedMail(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A mail. `sha256` is in hexadecimal, and `received_at` is a UTCDate.

    `size` is the number of bytes that the server states. If the content was confirmed with another
    length, `confirmed_size` is this length.
    """

    id: str
    blob_id: str
    thread_id: str
    received_at: str
    size: int
    sha256: str
    keywords: tuple[str, ...]
    mailboxes: tuple[SavedPlace, ...]
    confirmed_size: int | None = None

    @property
    def content_size(self) -> int:
        """The number of bytes of the content."""
        return self.size if self.confirmed_size is None else self.confirmed_size


class Origin(msgspec.Struct, frozen=True, rename="camel"):
    """The account that the mail comes from. `directory` is empty for the whole account.

    `server` is the API URL. `location` and `origins` are those of the identity (`jmap.identity`).
    Earlier versions did not write these two.
    """

    server: str
    account_id: str
    account_name: str
    username: str
    directory: str = ""
    location: str = ""
    origins: tuple[str, ...] = ()

    @property
    def identity(self) -> AccountIdentity:
        """Which account the mail comes from."""
        origins = merge_origins(self.origins, [self.server])
        return AccountIdentity(self.location, origins, self.username, self.account_id)

    def is_same(self, other: Origin) -> bool:
        """Return whether both are the same part of the same account."""
        return self.directory == other.directory and self.identity.is_same_account(other.identity)


class Description(msgspec.Struct, frozen=True, rename="camel"):
    """The description of a snapshot.

    `date` is the snapshot's name. `email_state` is the state of the account (RFC 8620 §1.6.3).
    `files` counts names. `bytes` is the size of the content, each blob counted once. `new`, `gone`
    and `added_bytes` compare with the snapshot `previous`. `epoch` and `blob_ids_are_sha1` come
    from the source. `missing` mails of the account are not in the snapshot but in `missing.jsonl`,
    whose checksum is `missing_sha256`. `adopted` is the account that the directory belonged to
    before, if it belongs to another one since this snapshot. With a `shortfall`, the server counts
    more mails than it lists. `compared_at` is when the numbers of emails were last compared with
    those of the server, empty if they never were. Earlier versions did not write the last seven
    members.
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
    epoch: str = ""
    blob_ids_are_sha1: bool = False
    missing: int = 0
    missing_sha256: str = ""
    adopted: Origin | None = None
    shortfall: ShortfallStatus | None = None
    compared_at: str = ""

    @property
    def lacking_count(self) -> int:
        """How many mails of the account the snapshot lacks; 0 if it is complete."""
        listed_less = self.shortfall.expected - self.shortfall.found if self.shortfall else 0
        return self.missing + listed_less

    @property
    def lacking(self) -> str:
        """What the snapshot was made without, as text; empty if it is complete."""
        parts = []
        if self.missing:
            parts.append(f"{count_mails(self.missing)} that could not be downloaded")
        if self.shortfall is not None:
            count = self.shortfall.expected - self.shortfall.found
            parts.append(f"{count_mails(count)} that the server counted, but did not list")
        return " and ".join(parts)


def count_mails(count: int) -> str:
    """Return a number of mails as text."""
    return "a mail" if count == 1 else f"{count:,} mails"


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(SavedMail)


def utc_date(seconds: int) -> str:
    """Return seconds since 1970 as a UTCDate (RFC 8620 §1.4)."""
    # On some platforms fromtimestamp does not support years before 1970.
    return (_EPOCH + timedelta(seconds=seconds)).isoformat(timespec="seconds")[:-6] + "Z"


def format_date(taken: datetime) -> str:
    """Return the name of a snapshot that was taken at a time in UTC."""
    return taken.strftime(_DATE_FORMAT)


def parse_date(name: str) -> datetime | None:
    """Return the time in UTC at which a snapshot was taken; None if `name` is no such name."""
    try:
        taken = datetime.strptime(name, _DATE_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None
    # strptime also accepts other forms, such as single digits.
    return taken if format_date(taken) == name else None


def is_mail_file(path: str) -> bool:
    """Return whether a mail can have this path, which is relative to the snapshot."""
    if len(path) > _MAX_PATH or "\0" in path:
        return False
    first, *others = path.split("/")
    return first == MAIL and bool(others) and not _INVALID_NAMES & set(others)


def checksum_line(sha256: str, file: str) -> bytes:
    """Return a line of SHA256SUMS. No name in a tree has a character that needs an escape."""
    return f"{sha256}  {file}\n".encode()


class ManifestWriter(contextlib.AbstractContextManager["ManifestWriter"]):
    """Writes the three metadata files that all snapshots have. All methods raise OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._digest = hashlib.sha256()
        self._position = 0
        self._manifest = _create(directory / MANIFEST)
        self._checksums = _create(directory / CHECKSUMS)

    def __exit__(self, *_: object) -> None:
        # After `finish` nothing is left to write. After a failure, the rest of the buffers is not
        # needed, so errors of writing it (a full disk) are ignored.
        for file in (self._manifest, self._checksums):
            with contextlib.suppress(OSError):
                file.close()

    def add(self, mail: SavedMail) -> int:
        """Write the lines of a mail. Return the position of the line in the manifest."""
        line = _encoder.encode(mail) + b"\n"
        position, self._position = self._position, self._position + len(line)
        self._digest.update(line)
        self._manifest.write(line)
        self._checksums.writelines(
            checksum_line(mail.sha256, place.file) for place in mail.mailboxes
        )
        return position

    def flush(self) -> None:
        """Write the buffered lines of the manifest, so that all lines can be read."""
        self._manifest.flush()

    def finish(self, description: Description) -> None:
        """Write the description and the last checksums, and sync all three files."""
        content = msgspec.json.format(_encoder.encode(description), indent=2) + b"\n"
        with _create(self._directory / DESCRIPTION) as file:
            file.write(content)
            _sync(file)
        if description.missing:
            self._checksums.write(checksum_line(description.missing_sha256, MISSING))
        self._checksums.write(checksum_line(self._digest.hexdigest(), MANIFEST))
        self._checksums.write(checksum_line(hashlib.sha256(content).hexdigest(), DESCRIPTION))
        _sync(self._manifest)
        _sync(self._checksums)


def is_intact(directory: Path) -> bool:
    """Return whether the manifest and the description of a snapshot match their checksums."""
    try:
        with open_reading(directory / CHECKSUMS) as checksums:
            lines = read_last_lines(checksums)
        return lines == [checksum_line(_sha256(directory / file), file) for file in SUMMED_FILES]
    except OSError:
        return False


def read_last_lines(checksums: BinaryIO, count: int = len(SUMMED_FILES)) -> list[bytes]:
    """Return the last `count` lines of SHA256SUMS, by default those about `SUMMED_FILES`.

    Raises OSError.
    """
    checksums.seek(max(0, os.fstat(checksums.fileno()).st_size - _TAIL_BYTES))
    return checksums.read(_TAIL_BYTES).splitlines(keepends=True)[-count:]


def read_description(directory: Path) -> Description:
    """Return the description of a snapshot.

    Raises:
        MissingFilesError: there is no description.
        AlteredFilesError: the description is not valid.
        StorageError: a newer jmapfs made the snapshot, or its description cannot be read.
    """
    path = directory / DESCRIPTION
    try:
        with open_reading(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise MissingFilesError(f"{path}: missing, so this is no snapshot of jmapfs") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    try:
        number = msgspec.json.decode(content, type=_AnyDescription).format
        if number > FORMAT:
            raise StorageError(
                f"{path}: made by a later jmapfs (format {number}): use that version"
            )
        if number == FORMAT:
            return msgspec.json.decode(content, type=Description)
    except UNDECODABLE as error:
        raise AlteredFilesError(f"{path}: not the description of a snapshot: {error}") from error
    raise AlteredFilesError(f"{path}: there is no format {number}")


class _AnyDescription(msgspec.Struct):
    """The members that the descriptions of all formats have."""

    format: int


def read_manifest(directory: Path) -> Iterator[tuple[int, SavedMail]]:
    """Yield the mails of a snapshot, in order, each with the position of its line.

    Raises, during the iteration:
        MissingFilesError: there is no manifest.
        AlteredFilesError: a line is not a valid line of a manifest.
        StorageError: the manifest cannot be read.
    """
    path = directory / MANIFEST
    position = number = 0
    try:
        with open_reading(path, buffering=_BUFFER_BYTES) as file:
            for number, line in enumerate(file, 1):  # noqa: B007 - named in the errors below
                yield position, decode_line(line)
                position += len(line)
    except FileNotFoundError:
        raise MissingFilesError(f"{path}: the manifest is missing") from None
    except UNDECODABLE as error:
        raise AlteredFilesError(f"{path}: line {number} is not valid: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error


def decode_line(line: bytes) -> SavedMail:
    """Decode a line of a manifest. Raises the errors in `UNDECODABLE`."""
    return _decoder.decode(line)


def _sha256(path: Path) -> str:
    with open_reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _create(path: Path) -> BinaryIO:
    return os.fdopen(create_file(path), "wb", buffering=_BUFFER_BYTES)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
