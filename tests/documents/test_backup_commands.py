"""The documented backup commands do not destroy each other's backups."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.documents.markdown import DOCUMENTS, commands, text

WITH_BOTH = ["README.md", "docs/backup-tools.md"]


def _destinations(markdown: str) -> tuple[set[Path], set[Path]]:
    """Return the destinations of `jmapfs snapshot` and of `rsync --delete`."""
    snapshots: set[Path] = set()
    mirrors: set[Path] = set()
    for words in commands(markdown):
        programs = [Path(word).name for word in words]
        if ["jmapfs", "snapshot"] in [programs[at : at + 2] for at in range(len(words))]:
            snapshots.add(_destination(words))
        if "rsync" in programs and any(word.startswith("--del") for word in words):
            mirrors.add(_destination(words))
    return snapshots, mirrors


def _destination(words: list[str]) -> Path:
    """Return the last argument, which is the destination; an option there would hide it."""
    assert not words[-1].startswith("-"), f"write the options first: {' '.join(words)}"
    return Path(words[-1])


def _in_danger(snapshots: Iterable[Path], mirrors: Iterable[Path]) -> set[Path]:
    """Return the snapshot destinations that equal, contain or lie in one of `rsync --delete`."""
    mirrors = list(mirrors)
    return {
        snapshot
        for snapshot in snapshots
        if any(snapshot.is_relative_to(at) or at.is_relative_to(snapshot) for at in mirrors)
    }


def test_rsync_deletes_no_snapshots() -> None:
    # A reader may take the commands from different documents.
    snapshots, mirrors = _destinations("\n".join(map(text, DOCUMENTS)))
    assert _in_danger(snapshots, mirrors) == set()


def test_the_commands_are_found() -> None:
    snapshots, _ = _destinations(text("README.md"))
    assert snapshots
    for document in WITH_BOTH:
        _, mirrors = _destinations(text(document))
        assert mirrors, document


@pytest.mark.parametrize(
    ("snapshot", "mirror"),
    [
        ("/backup/mail", "/backup/mail/"),
        ("/backup/mail/snapshots", "/backup/mail/"),
        ("/backup", "/backup/mail/"),
    ],
)
@pytest.mark.parametrize(
    "block",
    [
        "```sh\njmapfs snapshot home {0}     # hourly\nrsync -aH --delete ~/mail/ {1}\n```\n",
        "```\n0 * * * *  jmapfs snapshot home {0}\n```\n```\nrsync --del \\\n m {1}\n```\n",
        "```console\n$ jmapfs snapshot a {0} && jmapfs freeze m -- rsync --delete m {1}\n```\n",
    ],
)
def test_commands_that_delete_snapshots_are_found(block: str, snapshot: str, mirror: str) -> None:
    found = _destinations(block.format(snapshot, mirror))
    assert _in_danger(*found) == {Path(snapshot)}


def test_separate_directories_are_safe() -> None:
    block = (
        "```sh\njmapfs snapshot home /backup/mail\nrsync -a --delete m /backup/mail-copy/\n```\n"
    )
    snapshots, mirrors = _destinations(block)
    assert (snapshots, mirrors) == ({Path("/backup/mail")}, {Path("/backup/mail-copy")})
    assert _in_danger(snapshots, mirrors) == set()
