"""Snapshots: dated copies of an account on disk, that can be trusted without jmapfs.

`taking` makes one, from an account (`from_account`) or a mounted tree (`from_mount`): it copies
one state (`copying`) into a directory that is not a snapshot yet (`partial`), file by file
(`building`), and renames that when it is whole and on the disk.
"""

from jmapfs.snapshot.destination import Destination, Snapshot
from jmapfs.snapshot.from_account import account_opener
from jmapfs.snapshot.from_mount import MountOpener
from jmapfs.snapshot.report import Report, Summary
from jmapfs.snapshot.source import SourceOpener
from jmapfs.snapshot.taking import take_snapshot

__all__ = [
    "Destination",
    "MountOpener",
    "Report",
    "Snapshot",
    "SourceOpener",
    "Summary",
    "account_opener",
    "take_snapshot",
]
