"""Writes small snapshots without a source, for tests of the other commands."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jmapfs.snapshot.manifest import (
    FORMAT,
    Description,
    ManifestWriter,
    Origin,
    SavedMail,
    SavedPlace,
    utc_date,
)
from jmapfs.tree.export import ExportedMailbox
from jmapfs.tree.status_file import ShortfallStatus

ORIGIN = Origin("https://mail.example/jmap/", "u1", "alice", "alice@mail.example")


@dataclass(frozen=True)
class Letter:
    """A mail in a handmade snapshot."""

    number: int
    mailboxes: tuple[str, ...] = ("Inbox",)
    keywords: tuple[str, ...] = ()
    content: bytes = b""

    def also(self, **changes: object) -> Letter:
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def bytes(self) -> bytes:
        return self.content or f"Subject: letter {self.number}\r\n\r\nText.\r\n".encode()

    def saved(self) -> SavedMail:
        when = 1_700_000_000 + self.number * 60
        return SavedMail(
            id=f"M{self.number}",
            blob_id=f"B{self.number}",
            thread_id=f"T{self.number}",
            received_at=utc_date(when),
            size=len(self.bytes),
            sha256=hashlib.sha256(self.bytes).hexdigest(),
            keywords=tuple(sorted(self.keywords)),
            mailboxes=tuple(
                SavedPlace(f"id-{name}", name, None, f"mail/{name}/{self.number:04}.eml")
                for name in sorted(self.mailboxes)
            ),
        )


def make_snapshot(
    destination: Path,
    date: str,
    letters: Sequence[Letter],
    *,
    previous: Path | None = None,
    origin: Origin = ORIGIN,
    missing: int = 0,
    not_listed: int = 0,
) -> Path:
    """Write a snapshot as jmapfs does; mails of `previous` are linked.

    The description says that it lacks `missing` mails, and a shortfall of `not_listed` mails.
    """
    directory = destination / date
    (directory / "mail").mkdir(parents=True)
    names = sorted({name for letter in letters for name in letter.mailboxes})
    for name in names:
        (directory / "mail" / name).mkdir()
    with ManifestWriter(directory) as manifest:
        for letter in letters:
            saved = letter.saved()
            manifest.add(saved)
            first, *others = [directory / place.file for place in saved.mailboxes]
            known = _known(previous, saved)
            if known is not None:
                os.link(known, first)
            else:
                first.write_bytes(letter.bytes)
                first.chmod(0o400)
            for other in others:
                os.link(first, other)
        manifest.finish(
            Description(
                format=FORMAT,
                jmapfs="0",
                date=date,
                origin=origin,
                email_state="s1",
                mails=len(letters),
                files=sum(len(letter.mailboxes) for letter in letters),
                bytes=sum(len(letter.bytes) for letter in letters),
                previous=previous.name if previous else None,
                new=len(letters) if previous is None else 0,
                gone=0,
                added_bytes=0,
                links="hard",
                mailboxes=tuple(_mailboxes(names)),
                missing=missing,
                missing_sha256=hashlib.sha256(b"").hexdigest() if missing else "",
                shortfall=ShortfallStatus("", len(letters), len(letters) + not_listed)
                if not_listed
                else None,
            )
        )
    return directory


def _known(previous: Path | None, saved: SavedMail) -> Path | None:
    if previous is None:
        return None
    number = saved.id.removeprefix("M")
    return next(iter(previous.glob(f"mail/*/{int(number):04}.eml")), None)


def _mailboxes(names: Iterable[str]) -> list[ExportedMailbox]:
    return [ExportedMailbox(f"id-{name}", name, name, None, None, 0) for name in names]


def letters(count: int, first: int = 1) -> list[Letter]:
    """Return letters; every fifth is in two mailboxes."""
    return [
        Letter(number, ("Inbox", "Work") if number % 5 == 0 else ("Inbox",))
        for number in range(first, first + count)
    ]
