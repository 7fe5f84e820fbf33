"""Writing and reading the manifest of a snapshot, and the checksums of everything in it.

`SHA256SUMS` says nothing that the manifest does not say: it is there for `sha256sum -c`. But for
its last two lines, the checksums of the manifest and of `snapshot.json`: what they are is known
when they have been written, so no one byte of a snapshot can change without a checksum that tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self

import msgspec

from jmapfs.errors import UNDECODABLE, AlteredFilesError, MissingFilesError, StorageError
from jmapfs.snapshot.records import (
    CHECKSUMS,
    DESCRIPTION,
    FORMAT,
    MANIFEST,
    Description,
    SavedMail,
)
from jmapfs.snapshot.writing import created

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
