"""Each file of a directory of snapshots, damaged in each way, and every command that meets it.

A command gives the right result, or one line and a documented exit code. `verify` finds all damage
to a snapshot. A new snapshot is right in each byte, and the good snapshot stays.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import pytest

from jmapfs.errors import StorageError
from tests.disk.damage import ALL, CHANGED, REPLACED, SAME, UNREADABLE
from tests.disk.original import OTHER_USER, Files, copy_of, effective_user

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")

SNAPSHOT: Final = (
    "DATE/snapshot.json",
    "DATE/manifest.jsonl",
    "DATE/SHA256SUMS",
    "DATE/missing.jsonl",
    "DATE/mail/Inbox/*_mail-6_*",
)
"""Files of the second snapshot alone."""
SHARED: Final = "DATE/mail/Inbox/*_mail-2_*"
"""A file of both snapshots."""
STATE: Final = (
    ".jmapfs/lock",
    ".jmapfs/verified.json",
    "latest",
    ".partial-*/journal.jsonl",
    ".partial-*/missing.jsonl",
    ".partial-*/content/1",
)
LOCK: Final = ".jmapfs/lock"
REFUSED: Final = {"fifo", "socket", "directory", "link", "unreadable", "of another user"}

CASES: Final = [
    (file, damage)
    for file in (*SNAPSHOT, SHARED, *STATE)
    for damage in ALL
    # A link has no content.
    if file != "latest" or damage in REPLACED
]
OFTEN: Final = {
    ("DATE/snapshot.json", "fifo"),
    ("DATE/snapshot.json", "unreadable"),
    ("DATE/manifest.jsonl", "fifo"),
    ("DATE/manifest.jsonl", "flipped"),
    ("DATE/manifest.jsonl", "link"),
    ("DATE/SHA256SUMS", "socket"),
    ("DATE/SHA256SUMS", "truncated"),
    ("DATE/missing.jsonl", "fifo"),
    ("DATE/missing.jsonl", "flipped"),
    ("DATE/mail/Inbox/*_mail-6_*", "link"),
    (SHARED, "flipped"),
    (SHARED, "fifo"),
    (LOCK, "fifo"),
    (LOCK, "directory"),
    (".jmapfs/verified.json", "fifo"),
    (".jmapfs/verified.json", "garbage"),
    ("latest", "fifo"),
    ("latest", "directory"),
    (".partial-*/journal.jsonl", "fifo"),
    (".partial-*/journal.jsonl", "flipped"),
    (".partial-*/content/1", "garbage"),
    (".partial-*/content/1", "fifo"),
}
PARAMETERS: Final = [
    pytest.param(*case, marks=() if case in OFTEN else pytest.mark.long) for case in CASES
]


@needs_root
@pytest.mark.parametrize(("file", "damage"), PARAMETERS)
def test_every_command_on_a_damaged_file(original: Files, file: str, damage: str) -> None:
    with copy_of(original, "copy") as files, contextlib.ExitStack() as stack:
        first, second = files.dates
        path = _find(files, file)
        if damage in UNREADABLE:
            files.give_to(OTHER_USER)
            ALL[damage](path)
            stack.enter_context(effective_user(OTHER_USER))
        else:
            ALL[damage](path)

        files.run("snapshots", files.dest)
        files.run("snapshots", "--json", files.dest)
        files.run("diff", files.dest, first, second)
        files.run("diff", files.dest, first, "latest")
        files.run("prune", "--dry-run", "--keep-last", "1", files.dest)
        quick = files.run("verify", "--quick", files.dest)
        full = files.run("verify", files.dest)
        is_damaged = (file in SNAPSHOT or file == SHARED) and damage not in SAME
        assert (full.exit_code != 0) == is_damaged
        if damage in REPLACED:
            assert (quick.exit_code != 0) == is_damaged

        taken = files.snapshot()
        if file == LOCK and damage in REFUSED:
            assert taken.exit_code == StorageError.exit_code
            assert str(path) in taken.error
            assert files.dates == [first, second]
            return
        assert (taken.exit_code, taken.error) == (0, "")
        date = files.dates[-1]
        files.require_right(date)
        files.run("prune", "--keep-last", "1", files.dest)
        assert date in files.dates
        files.require_right(date)
        assert files.run("snapshots", files.dest).exit_code == 0


@needs_root
@pytest.mark.parametrize("damage", [*CHANGED, *REPLACED])
def test_the_good_snapshot_is_kept_if_no_new_one_is_made(original: Files, damage: str) -> None:
    with copy_of(original, "copy") as files:
        first, _ = files.dates
        ALL[damage](_find(files, SNAPSHOT[1]))
        files.run("verify", files.dest)
        files.run("prune", "--keep-last", "1", files.dest)
        assert first in files.dates
        assert files.run("verify", files.dest / first).exit_code == 0


def _find(files: Files, file: str) -> Path:
    [path] = files.dest.glob(file.replace("DATE", files.dates[1]))
    return path
