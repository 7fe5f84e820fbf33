"""Which content a manifest has, by blob id: that of the last snapshot, and of the one being made.

Memory has two numbers for each blob: of its id a hash, and where its line begins. The line itself
is read when it is asked for, and says whether it is the blob that was meant.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, Self

from jmapfs.snapshot.destination import Snapshot
from jmapfs.snapshot.manifest import decode_line, read_lines
from jmapfs.snapshot.records import MANIFEST, SavedMail
from jmapfs.snapshot.sharing import has_content

_LINE_BYTES: Final = 4096


class BlobLines:
    """The lines of a manifest by the blob ids in them, one line each; within `with`."""

    def __init__(self, manifest: Path) -> None:
        self._lines: dict[int, int] = {}
        self._descriptor = os.open(manifest, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, blob_id: str, position: int) -> None:
        """Note that the line of a blob begins there; the first one counts."""
        self._lines.setdefault(hash(blob_id), position)

    def find(self, blob_id: str) -> SavedMail | None:
        """Return the mail in whose line a blob is."""
        position = self._lines.get(hash(blob_id))
        if position is None:
            return None
        mail = decode_line(self._line(position))
        return mail if mail.blob_id == blob_id else None

    def __contains__(self, blob_id: str) -> bool:
        return hash(blob_id) in self._lines

    def missing_from(self, other: BlobLines) -> int:
        """Return how many blobs are here and not there."""
        return sum(1 for blob in self._lines if blob not in other._lines)

    def _line(self, position: int) -> bytes:
        line = b""
        while b"\n" not in line:
            piece = os.pread(self._descriptor, max(_LINE_BYTES, len(line)), position + len(line))
            if not piece:
                break
            line += piece
        return line.partition(b"\n")[0]


class Previous(BlobLines):
    """The contents of a snapshot that can be shared with the next one.

    With `doubted`, a file is read before it is said to be there: something was wrong with some.
    """

    def __init__(self, snapshot: Snapshot, *, doubted: bool) -> None:
        super().__init__(snapshot.path / MANIFEST)
        self.date = snapshot.date
        self.taken = snapshot.taken
        self._directory = os.fspath(snapshot.path)
        self._doubted = doubted
        for position, mail in read_lines(snapshot.path):
            self.add(mail.blob_id, position)

    def doubt(self) -> None:
        """Read each file from here on, before it is said to be there."""
        self._doubted = True

    def content(self, blob_id: str) -> tuple[str, SavedMail] | None:
        """Return a file that has the blob's content, and what is on record of it."""
        mail = self.find(blob_id)
        if mail is None:
            return None
        for place in mail.mailboxes:
            path = f"{self._directory}/{place.file}"
            if self._has(path, mail):
                return path, mail
        return None

    def _has(self, path: str, mail: SavedMail) -> bool:
        if self._doubted:
            return has_content(path, mail.size, mail.sha256)
        try:
            status = os.lstat(path)
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == mail.size
