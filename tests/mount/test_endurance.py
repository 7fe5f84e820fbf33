"""A day's worth of small changes: the daemon does not grow with what it has lived through."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.mounts import Home, Mounted
from tests.server import ControlClient, NewEmail, server_process

pytestmark = pytest.mark.mount

CHANGES_A_ROUND = 200
EMAILS = 400
READ_A_ROUND = 5
FIRST_DAY = datetime(2024, 3, 1, tzinfo=UTC)

MOST_GROWTH = 10 * 1024
MOST_MORE_DESCRIPTORS = 20  # a leak makes it thousands
MOST_LOG = 8 * 1024 * 1024  # SQLite moves it into the index from 4 MB on
MOST_INDEX_PER_CHANGE = 200  # the journal keeps so much of each of the last 100,000


@dataclass(frozen=True)
class Size:
    """What a daemon takes: KiB of memory, open descriptors, bytes on disk."""

    memory: int
    descriptors: int
    index: int
    log: int

    @classmethod
    def of(cls, mount: Mounted) -> Size:
        process = Path("/proc", str(mount.ask_status().pid))
        memory = re.search(r"^VmRSS:\s+(\d+) kB$", (process / "status").read_text(), re.MULTILINE)
        assert memory is not None
        (index,) = mount.home.cache.rglob("index.sqlite")
        return cls(
            int(memory[1]),
            len(list((process / "fd").iterdir())),
            index.stat().st_size,
            index.with_name("index.sqlite-wal").stat().st_size,
        )


class Life:
    """Changes of an account: mail arrives, is read, is moved, and is deleted."""

    def __init__(self, control: ControlClient) -> None:
        self._control = control
        self._random = random.Random(1)
        self._boxes = [control.create_mailbox(name) for name in ("Inbox", "Work", "Archive")]
        self._emails: dict[str, str] = {}  # the mailbox of each
        self._count = 0
        self.deliver(EMAILS)

    def deliver(self, count: int) -> None:
        new = [self._new_email() for _ in range(count)]
        for email_id, email in zip(self._control.add_emails(new), new, strict=True):
            self._emails[email_id] = email.mailbox_ids[0]

    def go_on(self, changes: int) -> None:
        """Make so many changes, a quarter of each kind; the number of emails stays the same."""
        quarter = changes // 4
        for _ in range(quarter):
            keywords = self._random.sample(["$seen", "$flagged", "$answered"], 2)
            self._control.set_keywords(self._any(), keywords)
        for _ in range(quarter):
            email_id, to_id = self._any(), self._random.choice(self._boxes)
            self._control.move_email(email_id, self._emails[email_id], to_id)
            self._emails[email_id] = to_id
        for _ in range(quarter // 5):
            self.deliver(5)
            gone = self._random.sample(sorted(self._emails), 5)
            self._control.destroy_emails(gone)
            for email_id in gone:
                del self._emails[email_id]

    def _any(self) -> str:
        return self._random.choice(list(self._emails))

    def _new_email(self) -> NewEmail:
        self._count += 1
        raw = (
            f"From: Anna <anna@example.org>\r\nSubject: Number {self._count}\r\n"
            f"Message-ID: <{self._count}@example.org>\r\n\r\n{'text ' * 200}\r\n"
        ).encode()
        received_at = FIRST_DAY + timedelta(minutes=self._count)
        text = received_at.isoformat().replace("+00:00", "Z")
        return NewEmail(raw, (self._random.choice(self._boxes),), received_at=text)


def use(mount: Mounted) -> None:
    """List everything, and read the newest mail of each mailbox."""
    for directory in sorted(mount.path.iterdir()):
        if directory.is_dir():
            names = sorted(entry.name for entry in os.scandir(directory) if entry.stat().st_size)
            for name in names[-READ_A_ROUND:]:
                assert (directory / name).read_bytes()


def live(home: Home, *, changes: int, warm_up: int) -> None:
    with server_process("empty") as server:
        life = Life(server.control)
        with home.mounted(server.url) as mount:
            warm: Size | None = None
            for done in range(CHANGES_A_ROUND, changes + 1, CHANGES_A_ROUND):
                life.go_on(CHANGES_A_ROUND)
                mount.sync()
                use(mount)
                if done == warm_up:
                    warm = Size.of(mount)
            assert warm is not None
            end = Size.of(mount)
            print(f"after {warm_up} changes {warm}, after {changes} {end}")

            assert end.memory - warm.memory < MOST_GROWTH
            assert abs(end.descriptors - warm.descriptors) <= MOST_MORE_DESCRIPTORS
            assert end.log < MOST_LOG
            assert end.index - warm.index < (changes - warm_up) * MOST_INDEX_PER_CHANGE
            assert_equal(mount, server.control)


def assert_equal(mount: Mounted, control: ControlClient) -> None:
    dump = control.dump()
    names = {box.id: box.name for box in dump.mailboxes}
    held = Counter(
        (names[mailbox_id], email.sha256)
        for email in dump.emails
        for mailbox_id in email.mailbox_ids
    )
    shown = Counter(
        (str(Path(path).parent), hashlib.sha256(content).hexdigest())
        for path, content in mount.contents().items()
    )
    assert shown == held


@pytest.mark.timeout(300)
def test_a_day_of_small_changes(home: Home) -> None:
    live(home, changes=10_000, warm_up=2_000)
