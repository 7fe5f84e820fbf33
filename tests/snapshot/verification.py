"""Verifies snapshots with our code and with sha256sum(1), and damages them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from jmapfs.snapshot.manifest import FORMAT, Description, ManifestWriter, SavedMail
from jmapfs.snapshot.verify import VerifyResult, verify
from jmapfs.snapshot.verify_read import InodeCache
from jmapfs.tree.export import ExportedMailbox
from tests.snapshot.handmade import ORIGIN, Letter, make_snapshot

DATE = "2026-11-22T010203Z"
LETTERS = [
    Letter(1),
    Letter(2, ("Inbox", "Work", "Work/Clients"), ("$seen",)),
    Letter(3, ("Work/Clients",)),
]


@dataclass
class Progress:
    """A `VerifyProgress` that adds up the calls; `when_it_begins` is called at the start."""

    when_it_begins: Callable[[], object] = bool
    mails: int = 0
    size: int = 0

    def started(self, description: Description | None) -> None:
        del description
        self.when_it_begins()

    def checked(self, mails: int, size: int) -> None:
        self.mails += mails
        self.size += size


def verified(
    directory: Path,
    *,
    quick: bool = False,
    inodes: InodeCache | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    return trio.run(
        partial(
            verify,
            directory,
            quick=quick,
            inodes=inodes or InodeCache(),
            progress=progress or Progress(),
        )
    )


def findings(directory: Path, *, quick: bool = False) -> list[tuple[str, str]]:
    """Return the findings: kind and path of each."""
    result = verified(directory, quick=quick)
    return [(finding.kind, finding.path) for finding in result.findings]


def new_snapshot(destination: Path) -> Path:
    """Make a snapshot with nested directories, and a mail with several files."""
    return make_snapshot(destination, DATE, LETTERS)


def write_snapshot(directory: Path, mails: list[SavedMail], mailboxes: list[str]) -> Path:
    """Write the metadata and the directories of a snapshot, but not the mail."""
    for path in mailboxes:
        (directory / "mail" / path).mkdir(parents=True)
    with ManifestWriter(directory) as manifest:
        for mail in mails:
            manifest.add(mail)
        manifest.finish(
            Description(
                format=FORMAT,
                jmapfs="0",
                date=DATE,
                origin=ORIGIN,
                email_state="s1",
                mails=len(mails),
                files=sum(len(mail.mailboxes) for mail in mails),
                bytes=sum(mail.size for mail in mails),
                previous=None,
                new=len(mails),
                gone=0,
                added_bytes=0,
                links="hard",
                mailboxes=tuple(
                    ExportedMailbox(f"id-{path}", path, path, None, None, 0) for path in mailboxes
                ),
            )
        )
    return directory


def overwrite(path: Path, content: bytes) -> None:
    """Overwrite the content of a file, which all its names share."""
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(0o400)


def flip(path: Path, position: int = -1, mask: int = 1) -> None:
    """Change one byte of a file, which all its names share."""
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    overwrite(path, bytes(content))


def sha256sum_passes(directory: Path) -> bool:
    """Return whether sha256sum(1) finds no change."""
    result = subprocess.run(
        ["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"],
        cwd=directory,
        capture_output=True,
        check=False,
    )
    return result.returncode == 0
