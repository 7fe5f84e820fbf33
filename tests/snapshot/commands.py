"""Creates snapshots with the real command, and inspects the result; also a server for them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmapfs.snapshot.manifest import SavedMail, read_manifest
from jmapfs.snapshot.repository import Repository
from tests.mails import received_at, text_mail
from tests.mounts import Home
from tests.server import ServerProcess, server_process


class RecordingReport:
    """A `SnapshotReport` that keeps the calls."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.notices: list[str] = []
        self.progress: list[tuple[int, int]] = []

    def listed(self, listed: int, total: int | None) -> None:
        del listed, total

    def copied(self, mails: int, total: int, size: int) -> None:
        del size
        self.progress.append((mails, total))

    def syncing(self) -> None:
        pass

    def published(self, path: Path) -> None:
        self.path = path

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def waiting(self, text: str) -> None:
        self.notices.append(text)


@dataclass(frozen=True)
class TakenSnapshot:
    """A snapshot, with the summary that `jmapfs snapshot --json` printed."""

    summary: dict[str, Any]

    @property
    def path(self) -> Path:
        return Path(self.summary["path"])

    @property
    def mails(self) -> list[SavedMail]:
        return [mail for _, mail in read_manifest(self.path)]

    @property
    def manifest(self) -> bytes:
        return (self.path / "manifest.jsonl").read_bytes()


def take(home: Home, source: str | Path, destination: Path, *options: str) -> TakenSnapshot:
    """Create a snapshot; the test fails if the command does."""
    result = home.run("snapshot", "--json", *options, source, destination)
    assert result.exit_code == 0, result.stderr
    return TakenSnapshot(json.loads(result.stdout))


def tree_of(snapshot: Path) -> dict[str, tuple[str, int, int]]:
    """Return the SHA-256, the size and the mtime in ns of each mail of a snapshot, by path."""
    return {
        str(path.relative_to(snapshot)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_size,
            path.stat().st_mtime_ns,
        )
        for path in sorted((snapshot / "mail").rglob("*.eml"))
    }


def everything_in(directory: Path) -> dict[str, tuple[int, int, int, int]]:
    """Return everything below a directory: inode, mode, size and mtime by path."""
    found = {}
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(parent, name)
            status = path.lstat()
            key = str(path.relative_to(directory))
            size = status.st_size if name in files else 0
            found[key] = (status.st_ino, status.st_mode, size, status.st_mtime_ns)
    return found


def require_whole(snapshot: Path) -> None:
    """Check a snapshot with sha256sum(1): it is complete, and has no other files."""
    result = subprocess.run(
        ["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"],
        cwd=snapshot,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = (snapshot / "SHA256SUMS").read_text().splitlines()
    listed = {line.split("  ", 1)[1] for line in lines}
    there = {
        str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if not path.is_dir()
    } - {"SHA256SUMS"}
    assert listed == there


def dates(destination: Path) -> list[str]:
    """Return the dates of all snapshots in a repository."""
    return [snapshot.date for snapshot in Repository(destination).snapshots()]


@contextmanager
def server_of(count: int, *, copied: str) -> Iterator[ServerProcess]:
    """Run the small server with `count` mails in Inbox; one of them is in Work too."""
    with server_process("empty") as server:
        control = server.control
        control.create_mailbox("Inbox", role="inbox")
        control.reset(
            [text_mail(number) for number in range(count)],
            received_at=[received_at(number) for number in range(count)],
        )
        control.copy_email(copied, control.create_mailbox("Work"))
        yield server
