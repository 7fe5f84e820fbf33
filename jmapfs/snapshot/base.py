"""The base of a new snapshot: the newest snapshot with an intact manifest.

The new snapshot shares a file of its base only if the file has the content that is wanted now. If
the blob ids of the server contain the SHA-1 of the content, the blob id and the size must agree.
Otherwise the time of receipt must agree as well, and the server must not have been reset since: a
reset server uses its ids again for other mail. `EmailIdentities` detects a reset, because the blob
id, the size and the time of receipt of an email id never change (RFC 8621 §4.1.1).

`LineIndex` finds the line of a mail in a manifest. It stores two integers for each mail: the hash
of a key, and the position of the line. A lookup reads the line and compares the key, because two
keys can have the same hash.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from jmapfs.errors import JmapfsError
from jmapfs.index.rows import EmailRow
from jmapfs.private_files import open_regular
from jmapfs.snapshot.files import has_content
from jmapfs.snapshot.manifest import MANIFEST, SavedMail, decode_line, read_manifest, utc_date
from jmapfs.snapshot.repository import Snapshot

_LINE_BYTES: Final = 4096


class LineIndex(AbstractContextManager["LineIndex"]):
    """Finds the lines of blobs in a manifest. If there are several lines, the first one counts."""

    def __init__(self, manifest: Path) -> None:
        self._positions: dict[int, int] = {}
        self._descriptor = open_regular(manifest)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def __len__(self) -> int:
        return len(self._positions)

    def __contains__(self, key: str) -> bool:
        return hash(key) in self._positions

    def add(self, key: str, position: int) -> None:
        """Add a line that begins at `position`."""
        self._positions.setdefault(hash(key), position)

    def find(self, key: str) -> SavedMail | None:
        """Return the mail that the line of a key describes."""
        position = self._positions.get(hash(key))
        if position is None:
            return None
        mail = decode_line(self._read_line(position))
        return mail if self._key(mail) == key else None

    def discard(self, key: str) -> bool:
        """Remove a key. Return whether it was there."""
        return self._positions.pop(hash(key), None) is not None

    def _key(self, mail: SavedMail) -> str:
        return mail.blob_id

    def _read_line(self, position: int) -> bytes:
        line = b""
        while b"\n" not in line:
            piece = os.pread(self._descriptor, max(_LINE_BYTES, len(line)), position + len(line))
            if not piece:
                break
            line += piece
        return line.partition(b"\n")[0]


class SharedFile(NamedTuple):
    """A file with a content: its path, its `size` in bytes, and its SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


class BaseSnapshot(LineIndex):
    """The newest snapshot with an intact manifest. The new snapshot shares the files of this one.

    `total` is the number of its contents. `len` is the number of those that were not discarded.
    With `verify_content`, each file is read and verified before it is shared. Without, only its
    size must be right. With `is_reset`, nothing is shared: the server was reset since.
    """

    def __init__(
        self, snapshot: Snapshot, *, verify_content: bool, blob_ids_are_sha1: bool
    ) -> None:
        super().__init__(snapshot.path / MANIFEST)
        self.date = snapshot.date
        self.taken = snapshot.taken
        self.verify_content = verify_content
        self.is_reset = False
        self.epoch = ""
        # A later version may have described the snapshot. Then its epoch is not known.
        with contextlib.suppress(JmapfsError):
            self.epoch = snapshot.description().epoch
        self.directory = snapshot.path
        self._root = os.fspath(snapshot.path)
        self._blob_ids_are_sha1 = blob_ids_are_sha1
        try:
            for position, mail in read_manifest(snapshot.path):
                self.add(self._key(mail), position)
        except BaseException:
            self.__exit__()
            raise
        self.total = len(self)

    def key(self, blob_id: str, received_at: int) -> str:
        """Return the key of a content."""
        if self._blob_ids_are_sha1:
            return blob_id
        return f"{blob_id}\0{utc_date(received_at)}"

    def file(
        self, blob_id: str, received_at: int, size: int, stated_size: int
    ) -> SharedFile | None:
        """Return a file with the content that is wanted, or None if the base does not have it.

        `size` is the size that the content must have. `stated_size` is the size that the server
        states.
        """
        if self.is_reset:
            return None
        mail = self.find(self.key(blob_id, received_at))
        if mail is None:
            return None
        is_confirmed = mail.confirmed_size is not None and mail.size == stated_size
        if mail.content_size != size and not is_confirmed:
            return None
        for place in mail.mailboxes:
            file = SharedFile(f"{self._root}/{place.file}", mail.content_size, mail.sha256)
            if self._can_share(file):
                return file
        return None

    def _key(self, mail: SavedMail) -> str:
        if self._blob_ids_are_sha1:
            return mail.blob_id
        return f"{mail.blob_id}\0{mail.received_at}"

    def _can_share(self, file: SharedFile) -> bool:
        if self.verify_content:
            return has_content(file.path, file.size, file.sha256)
        try:
            status = os.lstat(file.path)
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == file.size


class EmailIdentities:
    """The values of the emails in a snapshot that can never change, as a hash for each email id.

    The size counts only `with_sizes`: earlier versions did not record the size that was stated.
    Raises JmapfsError if the manifest cannot be read.
    """

    def __init__(self, directory: Path, *, with_sizes: bool) -> None:
        self._with_sizes = with_sizes
        self._values = {
            hash(mail.id): self._value(mail.blob_id, mail.received_at, mail.size)
            for _, mail in read_manifest(directory)
        }

    def differ_from(self, emails: Iterable[EmailRow]) -> bool:
        """Return whether one of the emails has other values than its id had in the snapshot."""
        for email in emails:
            known = self._values.get(hash(email.id))
            if known is not None and known != self._value(
                email.blob_id, utc_date(email.received_at), email.server_size
            ):
                return True
        return False

    def _value(self, blob_id: str, received_at: str, size: int) -> int:
        return hash((blob_id, received_at, size if self._with_sizes else 0))
