"""What taking a snapshot tells the one who asked for it, and what it comes to at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from jmapfs.snapshot.records import Links


class Report(Protocol):
    """Takes what there is to say, in the event loop."""

    def listed(self, listed: int, total: int | None) -> None:
        """Say how many emails are listed, of how many where that is known."""
        ...

    def copied(self, mails: int, total: int, size: int) -> None:
        """Say how many mails are in the snapshot, of about how many, and the bytes fetched."""
        ...

    def finishing(self) -> None:
        """Say that everything is there, and is being brought to the disk."""
        ...

    def made(self, path: Path) -> None:
        """Say that the snapshot is there, whatever may come after that."""
        ...

    def notice(self, text: str) -> None:
        """Say something that the user should know."""
        ...


class Summary(msgspec.Struct, frozen=True):
    """A snapshot that was taken.

    `bytes` is the content, each blob once; of it `fetched_bytes`, by `fetched` blobs, came from
    the source in this run, `cached` blobs from the cache of a mount, and `taken_over` blobs from
    runs that were interrupted. `new` and `gone`
    count blobs in comparison to the snapshot `previous`. `attempts` is how many states of the
    account were begun with: mail may vanish before it is fetched.
    """

    path: str
    date: str
    email_state: str
    mails: int
    files: int
    bytes: int
    previous: str | None
    new: int
    gone: int
    fetched: int
    fetched_bytes: int
    cached: int
    taken_over: int
    links: Links
    attempts: int
    seconds: float
