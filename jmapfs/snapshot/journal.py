"""The journal of a snapshot that is being made: which contents have come, and where they are.

A line is written before the file that it speaks of is moved, and nothing here is synced: what a
journal says is a claim, to be checked by reading the file, and what it does not say is lost and
fetched again. So it may end anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final, Self

import msgspec

from jmapfs.errors import UNDECODABLE
from jmapfs.snapshot.records import Origin, is_mail_file
from jmapfs.snapshot.writing import created, write_all

JOURNAL: Final = "journal.jsonl"
CONTENT: Final = "content"
TREE: Final = "snapshot"

_MODE: Final = 0o600


class _Head(msgspec.Struct, frozen=True):
    origin: Origin


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A content that has come: `size` in bytes, its SHA-256, and its file within the partial."""

    blob_id: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    file: str


class Journal:
    """Appends to the journal of a partial, within `with`; raises OSError."""

    def __init__(self, partial: Path, origin: Origin) -> None:
        self._descriptor = created(partial / JOURNAL, _MODE, append=True)
        try:
            write_all(self._descriptor, msgspec.json.encode(_Head(origin)) + b"\n")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, contents: Iterable[Kept]) -> None:
        """Note contents, from any thread."""
        # A short write would leave half a line in the middle of others.
        write_all(self._descriptor, b"".join(msgspec.json.encode(one) + b"\n" for one in contents))

    def close(self) -> None:
        """Write no more."""
        os.close(self._descriptor)


def read_origin(partial: Path) -> Origin | None:
    """Return whose mail a partial is of; None where it does not come to saying so."""
    try:
        with (partial / JOURNAL).open("rb") as file:
            return msgspec.json.decode(file.readline(), type=_Head).origin
    except (OSError, *UNDECODABLE):
        return None


def read_journal(partial: Path) -> Iterator[Kept]:
    """Yield what a partial says it has; a content that was moved has several lines, in order."""
    decoder = msgspec.json.Decoder(Kept)
    try:
        with (partial / JOURNAL).open("rb") as file:
            file.readline()
            for line in file:
                try:
                    kept = decoder.decode(line)
                except UNDECODABLE:
                    # The end, or what a crash left of a line: the others are whole.
                    continue
                if _is_within(kept.file):
                    yield kept
    except OSError:
        return


def _is_within(file: str) -> bool:
    """Tell whether a path is one that a partial gives: others are not for jmapfs to move."""
    place, _, rest = file.partition("/")
    if place == CONTENT:
        return rest.isascii() and rest.isdecimal()
    return place == TREE and is_mail_file(rest)
