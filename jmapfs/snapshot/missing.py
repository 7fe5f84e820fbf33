"""The mails that cannot be downloaded, or are bad: `missing.jsonl`, one line for each mail.

While a snapshot is made, the file is beside its tree, and it stays there if the run fails. A
snapshot that was made without these mails contains the file.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from jmapfs.errors import UNDECODABLE, printable
from jmapfs.private_files import create_file, open_reading
from jmapfs.snapshot.files import sync_directory, write_all
from jmapfs.snapshot.manifest import MISSING

SHOWN: Final = 10
"""How many mails are kept in memory, to be shown."""


class MissingMail(msgspec.Struct, frozen=True, rename="camel"):
    """A mail that cannot be downloaded, and the reason.

    `files` are its paths in the tree of the source. `received_at` is a UTCDate. For a bad email,
    only the id and the reason are known.
    """

    id: str
    blob_id: str | None
    received_at: str | None
    size: int | None
    files: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        """Return a name and the reason, for a message."""
        name = self.files[0] if self.files else f"email {printable(self.id, 80)}"
        return f"{name}: {self.reason}"


class MissingMails(contextlib.AbstractContextManager["MissingMails"]):
    """The missing mails of a run. The file at `path` exists if there are any.

    `count` is their number, `first` are the first of them. All methods raise OSError.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / MISSING
        self.count = 0
        self.first: list[MissingMail] = []
        self._descriptor: int | None = None
        self._digest = hashlib.sha256()

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def add(self, mails: Iterable[MissingMail]) -> None:
        """Append mails to the file."""
        for mail in mails:
            if self._descriptor is None:
                self._descriptor = create_file(self.path)
            line = msgspec.json.encode(mail) + b"\n"
            write_all(self._descriptor, line)
            self._digest.update(line)
            self.count += 1
            if len(self.first) < SHOWN:
                self.first.append(mail)

    def finish(self) -> str:
        """Sync the file. Return its SHA-256 in hexadecimal, or "" if there are no mails."""
        if self._descriptor is None:
            return ""
        os.fsync(self._descriptor)
        sync_directory(self.path.parent)
        return self._digest.hexdigest()


def read_missing(path: Path) -> Iterator[MissingMail]:
    """Yield the mails in a file. Lines that are not valid are left out. Raises OSError."""
    decoder = msgspec.json.Decoder(MissingMail)
    with open_reading(path) as file:
        for line in file:
            with contextlib.suppress(*UNDECODABLE):
                yield decoder.decode(line)
