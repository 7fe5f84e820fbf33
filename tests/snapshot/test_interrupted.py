"""A run that is interrupted leaves no snapshot, and the next run completes it.

A watcher looks at the destination all the time: whatever has a date when it is seen is checked at
once, while the runs go on and are killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from jmapfs.cli.main import cli
from jmapfs.cli.signals import InterruptedBySignal
from jmapfs.errors import UnreachableError
from jmapfs.snapshot import staging
from jmapfs.snapshot.files import sync_directory
from jmapfs.snapshot.manifest import parse_date
from tests import corpus
from tests.cyrus import Account, Message
from tests.mounts import Home
from tests.relay import Relay
from tests.server import server_process
from tests.snapshot.commands import dates, require_whole, take, tree_of
from tests.stored_mail import START, sha256
from tests.waits import wait_until

MAILS = 400
MORE = 60
CUTS = 6
CUT_FIRST = 1_000_000


class Watcher:
    """Checks each snapshot as soon as it appears."""

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seen: set[str] = set()
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.error is None, self.error
        assert self.seen == set(dates(self._destination))

    def _watch(self) -> None:
        try:
            while not self._stop.is_set():
                self._look()
                time.sleep(0.01)
            self._look()
        except BaseException as error:  # noqa: BLE001 - raised in the test
            self.error = error

    def _look(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for path in self._destination.iterdir():
                if parse_date(path.name) is not None and path.name not in self.seen:
                    require_whole(path)
                    self.seen.add(path.name)


class Mail:
    """An account that changes between runs, and its present mails."""

    def __init__(self, account: Account) -> None:
        self.account = account
        account.create_mailbox("Work")
        self._number = 0
        self._expunged = 0
        self._mails: list[bytes] = []

    def add(self, count: int) -> None:
        plain = corpus.plain_mails()
        new = [
            corpus.varied(plain[number % len(plain)], number)
            for number in range(self._number, self._number + count)
        ]
        self._number += count
        self._mails += new
        self.account.fill("INBOX", [Message(mail, received=START) for mail in new])

    def change(self) -> None:
        self.add(MORE)
        first = self._expunged + 1
        self.account.expunge("INBOX", range(first, first + 5))
        self._expunged += 5
        del self._mails[:5]

    def sha256s(self) -> Counter[str]:
        return Counter(map(sha256, self._mails))


def contents_of(snapshot: Path) -> Counter[str]:
    return Counter(digest for digest, _, _ in tree_of(snapshot).values())


def begun_since(destination: Path, left: set[Path]) -> bool:
    return bool(set(destination.glob(".partial*")) - left)


@pytest.fixture
def mail(cyrus_account: Account) -> Mail:
    return Mail(cyrus_account)


@pytest.fixture
def home(cyrus_account: Account, tmp_path: Path) -> Home:
    return Home(tmp_path / "home", cyrus_account.name, cyrus_account.password)


@pytest.mark.timeout(400)
def test_a_connection_that_breaks_anywhere_leaves_no_broken_snapshot(
    mail: Mail, home: Home, tmp_path: Path
) -> None:
    random_bytes = random.Random(6)
    dest = tmp_path / "dest"
    mail.add(MAILS)
    said = CUT_FIRST
    with Relay(mail.account.http_port) as relay, Watcher(dest):
        url = mail.account.url.replace(str(mail.account.http_port), str(relay.port))
        for _ in range(CUTS):
            before = relay.received
            relay.break_after(random_bytes.randrange(said))
            result = home.run("snapshot", "--quiet", url, dest)
            if relay.is_broken:
                assert result.exit_code == UnreachableError.exit_code, result.stderr
                assert len(result.stderr.splitlines()) == 1
            else:
                assert result.exit_code == 0, result.stderr
            relay.restore()
            taken = take(home, url, dest)
            # The number of bytes that the server sends for this account.
            said = relay.received - before
            assert contents_of(taken.path) == mail.sha256s()
            assert not list(dest.glob(".partial*"))
            mail.change()


def test_ctrl_c_ends_a_run(mail: Mail, home: Home, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    interrupted = 0
    for number, moment in (
        (signal.SIGINT, 0),
        (signal.SIGTERM, 0.05),
        (signal.SIGHUP, 0.05),
        (signal.SIGINT, 0.1),
    ):
        mail.add(MAILS)
        left = set(dest.glob(".partial*"))
        with subprocess.Popen(
            [*home.program, "snapshot", mail.account.url, dest],
            env=home.environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as process:
            # Not while Python starts: then Python itself prints a traceback.
            wait_until(partial(begun_since, dest, left))
            time.sleep(moment)
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        if process.returncode == 0:
            continue
        assert process.returncode == 130
        assert re.fullmatch("jmapfs: interrupted(, but .* is complete)?\n", errors), errors
        interrupted += 1
    assert interrupted
    taken = take(home, mail.account.url, dest)
    assert contents_of(taken.path) == mail.sha256s()


def test_ctrl_c_after_publication_names_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot with a date is finished, and the message says so."""

    def interrupted(directory: Path) -> None:
        if directory == tmp_path / "dest":
            os.kill(os.getpid(), signal.SIGINT)
        sync_directory(directory)

    monkeypatch.setattr(staging, "sync_directory", interrupted)
    monkeypatch.setenv("JMAPFS_USERNAME", "alice@example.org")
    monkeypatch.setenv("JMAPFS_PASSWORD", "secret")
    arguments = ["snapshot", "--quiet", "--cache-dir", str(tmp_path / "cache")]
    with (
        server_process() as server,
        pytest.raises(InterruptedBySignal, match="is complete") as caught,
    ):
        cli.main([*arguments, server.url, str(tmp_path / "dest")], standalone_mode=False)
    [date] = dates(tmp_path / "dest")
    assert date in str(caught.value)
    require_whole(tmp_path / "dest" / date)
    assert (tmp_path / "dest" / "latest").resolve().name == date
    assert not list((tmp_path / "dest").glob(".partial*"))
