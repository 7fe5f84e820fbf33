"""The operations of the matrix: each runs the real program while a fault is injected.

Operations of one group share a mount. After each of them, the fault is cleared, and the operation
succeeds again without any action. So an operation does not affect the next one.
"""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from jmapfs.errors import JmapfsError
from tests.faults.account import LARGE, FaultyAccount
from tests.faults.faults import Fault
from tests.faults.proxy import CONTENT, FaultProxy, Kind
from tests.mounts import Home, Mounted, Result
from tests.snapshot.commands import require_whole
from tests.waits import has_ended

POLL_SECONDS = 5
# Everything here runs beside many other mounts, and on any machine.
SLACK = 15.0
# What a server may ask for with Retry-After, and jmapfs waits for.
ASKED_SECONDS = 60.0
# An event stream counts as dead after two minutes. All other pauses are shorter.
RECOVERY_SECONDS = 120.0 + POLL_SECONDS
_GIVE_UP_SECONDS = 200.0


@dataclass(frozen=True)
class Operation:
    """An operation: which requests the fault is aimed at, how long it may take, and why."""

    name: str
    text: str
    kinds: frozenset[Kind]
    seconds: float
    reason: str


_REQUEST = "A request gets 30 seconds with all its retries"

_NO_PROGRESS = "It ends two minutes after the last bytes, which a request may bring for 30 seconds."

MOUNT = Operation(
    "mount",
    "`jmapfs mount` of an account for the first time.",
    frozenset({Kind.SESSION}),
    30,
    f"{_REQUEST}, and the session is the first one.",
)
LISTING = Operation(
    "first listing",
    "`jmapfs mount` of an account for the first time.",
    frozenset({Kind.API}),
    60,
    f"{_REQUEST}; after a failure, the session is requested again.",
)
REMOUNT = Operation(
    "remount",
    "`jmapfs mount` of an account that is listed.",
    frozenset({Kind.SESSION, Kind.API, Kind.EVENTS}),
    60,
    "As the first listing. The mount then begins offline.",
)
SYNC = Operation(
    "sync",
    "New mail, and `jmapfs sync`.",
    frozenset({Kind.SESSION, Kind.API}),
    60,
    f"{_REQUEST}; after a failure, the session is requested again.",
)
PUSH = Operation(
    "push",
    "New mail after the event stream has ended; time until the mount shows it.",
    frozenset({Kind.EVENTS}),
    120 + POLL_SECONDS,
    "An event stream without an event counts as dead after 120 seconds. Polls follow, here every"
    f" {POLL_SECONDS} seconds.",
)
FREEZE = Operation(
    "freeze",
    "New mail, and `jmapfs freeze`.",
    frozenset({Kind.SESSION, Kind.API, Kind.EVENTS}),
    60,
    "It waits for the round that runs: a request and a session.",
)
READ = Operation(
    "read",
    "A small and a large file are read; time of the slower one.",
    CONTENT,
    30 + LARGE / 2**18,
    "A READ gets 30 seconds, which the bytes of a large mail refill.",
)
BATCH = Operation(
    "batch",
    "A directory is read in its order; the fault is in Blob/get only; time of the slowest file.",
    frozenset({Kind.BLOB_GET}),
    30,
    "A READ gets 30 seconds.",
)
READAHEAD = Operation(
    "read-ahead",
    "A directory is read in its order; time of the slowest file.",
    CONTENT,
    30,
    "A READ gets 30 seconds.",
)
PREFETCH = Operation(
    "prefetch",
    "`jmapfs prefetch` of a directory.",
    CONTENT,
    30 + 120,
    _NO_PROGRESS,
)
SNAPSHOT = Operation(
    "snapshot",
    "`jmapfs snapshot` of an account.",
    CONTENT,
    30 + 120,
    _NO_PROGRESS,
)
MOUNT_SNAPSHOT = Operation(
    "snapshot of a mount",
    "`jmapfs snapshot` of a directory in a mount.",
    CONTENT,
    30 + 120,
    _NO_PROGRESS,
)

OPERATIONS = (
    MOUNT,
    LISTING,
    REMOUNT,
    SYNC,
    PUSH,
    FREEZE,
    READ,
    BATCH,
    READAHEAD,
    PREFETCH,
    SNAPSHOT,
    MOUNT_SNAPSHOT,
)


@dataclass
class Cell:
    """What happened: the outcome, after how many seconds, and when it worked again.

    `problems` are what must never happen. `injected` is how often the fault was injected.
    """

    operation: str
    what: str = ""
    seconds: float = 0.0
    recovered: float | None = None
    injected: int = 0
    problems: list[str] = field(default_factory=list)


class _LateError(Exception):
    """An operation did not end."""


@dataclass
class Trial:
    """One fault, once or permanently, with an account and a user of its own."""

    fault: Fault
    permanent: bool
    proxy: FaultProxy
    account: FaultyAccount
    home: Home
    cells: list[Cell] = field(default_factory=list)

    @contextmanager
    def mounted(self, home: Home | None = None) -> Iterator[Mounted]:
        """Mount without a fault; afterwards, the daemon must have survived."""
        home = home or self.home
        mount = home.mount(self.proxy.url, home.directory / "mnt", *_QUICK_POLL)
        try:
            yield mount
        finally:
            _unmount(mount)

    def inject(self, operation: Operation, *, disconnect: bool = False) -> None:
        """Begin the fault."""
        count = None if self.permanent else 1
        self.proxy.inject(self.fault, operation.kinds, count=count, disconnect=disconnect)

    def run(self, cell: Cell, *arguments: str | Path) -> Result:
        """Run a command, and check how it ends; its outcome is that of the cell."""
        started = time.monotonic()
        try:
            result = self.home.run(*arguments, seconds=_GIVE_UP_SECONDS)
        except subprocess.TimeoutExpired:
            raise _LateError from None
        cell.seconds = max(cell.seconds, time.monotonic() - started)
        cell.what = "ok" if result.exit_code == 0 else f"exit {result.exit_code}"
        if result.exit_code and not result.stderr.startswith("jmapfs: "):
            cell.problems.append(f"no error message: {result.stderr!r}")
        if "Traceback" in result.stdout + result.stderr or result.exit_code in {1, -6, -9, -11}:
            cell.problems.append(f"a bug: {result.stderr[-2000:]}")
        return result

    def cell(
        self,
        operation: Operation,
        act: Callable[[Cell], object],
        recover: Callable[[], bool],
        mount: Mounted | None = None,
        *,
        disconnect: bool = False,
    ) -> None:
        """Have the operation run with the fault, judge it, and wait until it works again."""
        cell = Cell(operation.name)
        self.cells.append(cell)
        daemon = None if mount is None else mount.ask_status().pid
        self.inject(operation, disconnect=disconnect)
        try:
            act(cell)
        except _LateError:
            cell.what, cell.seconds = "no end", _GIVE_UP_SECONDS
        except (JmapfsError, OSError) as error:
            cell.what = f"{type(error).__name__}: {error}"
            cell.problems.append(cell.what)
        cell.injected = self.proxy.injected
        self.proxy.clear()
        limit = operation.seconds + SLACK + (ASKED_SECONDS if self.fault.asks_to_wait else 0)
        if cell.seconds > limit:
            cell.problems.append(f"late: {cell.seconds:.0f} s")
        # Discovery follows redirects (RFC 8620 §2.2).
        if any(count for kind, count in self.proxy.leaked.items() if kind != Kind.SESSION):
            cell.problems.append(f"credentials reached another host: {self.proxy.leaked}")
        if daemon is not None and has_ended(daemon):
            cell.problems.append("the daemon is dead")
            return
        self._recover(cell, recover)
        if "Traceback" in self.home.log():
            cell.problems.append(f"traceback: {self.home.log()[-3000:]}")

    def _recover(self, cell: Cell, recover: Callable[[], bool]) -> None:
        started = time.monotonic()
        while time.monotonic() < started + RECOVERY_SECONDS + SLACK:
            if recover():
                cell.recovered = time.monotonic() - started
                return
            time.sleep(0.5)
        cell.problems.append("does not work again")

    def wait_for_fault(self) -> None:
        """Wait until the fault was injected, or a poll is over."""
        deadline = time.monotonic() + POLL_SECONDS + 2
        while not self.proxy.injected and time.monotonic() < deadline:
            time.sleep(0.1)

    # Reads

    def read(self, cell: Cell, mount: Mounted, name: str, *, each: bool = False) -> bool:
        """Read all files of a directory; return whether all succeeded.

        The time of the cell is that of the slowest file. A fault that happens once may happen once
        for `each` file.
        """
        failed: list[str] = []
        problems = self.account.check(mount.path / name, name)
        cell.problems += problems
        paths = [] if problems else sorted((mount.path / name).glob("*.eml"))
        injected = 0
        for number, (path, expected) in enumerate(
            zip(paths, self.account.contents[name], strict=False)
        ):
            if each and number and not self.permanent:
                injected += self.proxy.injected
                self.inject(READ)
            started = time.monotonic()
            error, problem = _read(path, expected)
            cell.seconds = max(cell.seconds, time.monotonic() - started)
            failed += [error] if error else []
            cell.problems += [f"{problem}: {path.name}"] if problem else []
        if not failed:
            cell.what = "ok"
        else:
            share = "" if len(failed) == len(paths) else f"{len(failed)} of {len(paths)} "
            cell.what = share + "/".join(sorted(set(failed)))
        self.proxy.injected += injected
        return not failed

    def shows_all(self, mount: Mounted, *, retry: bool = False) -> bool:
        """Return whether the Inbox shows all mail. With `retry`, the fault may be over."""
        if retry and self.fault.needs_sync:
            self.home.run("sync", mount.path)
        return not self.account.check(mount.path / "Inbox", "Inbox")

    def reads(self, mount: Mounted, name: str, *, retry: bool = False) -> bool:
        """Return whether all files of a directory can be read; problems are those of the cell."""
        if retry and self.fault.needs_sync:
            self.home.run("sync", mount.path)
        attempt = Cell("")
        readable = self.read(attempt, mount, name)
        self.cells[-1].problems += attempt.problems
        return readable


_QUICK_POLL = ("--poll-interval", str(POLL_SECONDS))


def mounting(trial: Trial) -> None:
    """Mount, the first listing, and a mount of an account that is listed."""
    trial.account.fill("Inbox", 3)
    for operation in (MOUNT, LISTING):
        directory = trial.home.directory / operation.name.replace(" ", "-")
        _mount_first(replace(trial, home=replace(trial.home, directory=directory)), operation)
    _remount(trial)


def _mount_first(trial: Trial, operation: Operation) -> None:
    path = trial.home.directory / "mnt"
    path.mkdir()
    mount = Mounted(trial.home, path, Result(0, "", ""))

    def act(cell: Cell) -> None:
        if trial.run(cell, "mount", *_QUICK_POLL, trial.proxy.url, path).exit_code == 0:
            problems = trial.account.check(path / "Inbox", "Inbox")
            # Garbled names are names, and a listing may lack emails if the status says so.
            status = mount.ask_status().accounts[0]
            if problems and trial.account.is_listed(path, "Inbox"):
                cell.what, problems = "ok, another name", []
            elif problems and (status.bad_count or status.shortfall):
                cell.what, problems = "ok, without a bad email", []
            cell.problems += problems

    def recover() -> bool:
        if not path.is_mount():
            result = trial.home.run("mount", *_QUICK_POLL, trial.proxy.url, path)
            if result.exit_code:
                return False
        return trial.shows_all(mount)

    try:
        trial.cell(operation, act, recover)
    finally:
        _unmount(mount)


def _remount(trial: Trial) -> None:
    with trial.mounted():
        pass
    path = trial.home.directory / "mnt"
    mount = Mounted(trial.home, path, Result(0, "", ""))

    def act(cell: Cell) -> None:
        if trial.run(cell, "mount", *_QUICK_POLL, trial.proxy.url, path).exit_code == 0:
            cell.problems += trial.account.check(path / "Inbox", "Inbox")
            if trial.permanent and not mount.ask_status().accounts[0].online:
                cell.what = "ok, offline"
        elif cell.what == "exit 5":
            cell.problems.append("an account that is listed is not mounted without a server")
        trial.account.deliver()

    def recover() -> bool:
        if not path.is_mount():
            # The server has answered, but not as the server of this account.
            trial.home.run("mount", *_QUICK_POLL, trial.proxy.url, path)
        return path.is_mount() and trial.shows_all(mount, retry=True)

    try:
        trial.cell(REMOUNT, act, recover)
    finally:
        _unmount(mount)


def following(trial: Trial) -> None:
    """Sync, push and freeze."""
    trial.account.fill("Inbox", 3)
    with trial.mounted() as mount:
        shows_all = partial(trial.shows_all, mount)
        shows_all_again = partial(trial.shows_all, mount, retry=True)

        def sync(cell: Cell) -> None:
            trial.account.deliver()
            if trial.run(cell, "sync", mount.path).exit_code == 0 and not shows_all():
                cell.problems.append("sync succeeded, but the new mail is missing")

        trial.cell(SYNC, sync, shows_all_again, mount)

        def push(cell: Cell) -> None:
            # The end of the stream alone makes the mount ask for changes.
            trial.wait_for_fault()
            time.sleep(1)
            trial.account.deliver()
            started = time.monotonic()
            cell.what = "shown"
            while not shows_all():
                if time.monotonic() > started + _GIVE_UP_SECONDS:
                    raise _LateError
                # Without any connection, polls fail as well.
                if trial.fault.at_connect and not mount.ask_status().accounts[0].online:
                    cell.what = "offline"
                    break
                time.sleep(0.2)
            cell.seconds = time.monotonic() - started

        def shows_the_next() -> bool:
            if not following_again:
                trial.account.deliver()
                following_again.append(True)
            return shows_all_again()

        following_again: list[bool] = []
        trial.cell(PUSH, push, shows_the_next, mount, disconnect=True)

        def freeze(cell: Cell) -> None:
            trial.account.deliver()
            trial.wait_for_fault()
            if trial.run(cell, "freeze", "--timeout", "120s", mount.path).exit_code:
                return
            before = mount.entries().keys()
            trial.account.deliver()
            time.sleep(1)
            if mount.entries().keys() != before:
                cell.problems.append("the frozen tree has changed")
            if trial.home.run("thaw", mount.path).exit_code:
                cell.problems.append("the freeze does not end")

        trial.cell(FREEZE, freeze, shows_all_again, mount)


def reading(trial: Trial) -> None:
    """Reads, read-ahead, batches and prefetch."""
    trial.account.fill("Read", 1, 1)
    trial.account.fill("Batch", 8)
    trial.account.fill("Ahead", 8)
    trial.account.fill("Prefetch", 4, 1)
    with trial.mounted() as mount:
        for operation, name in ((READ, "Read"), (BATCH, "Batch"), (READAHEAD, "Ahead")):
            trial.cell(
                operation,
                partial(trial.read, mount=mount, name=name, each=operation is READ),
                partial(trial.reads, mount, name, retry=True),
                mount,
            )
        directory = mount.path / "Prefetch"

        def prefetch(cell: Cell) -> None:
            if trial.run(cell, "prefetch", directory).exit_code == 0:
                before = sum(trial.proxy.requests[kind] for kind in CONTENT)
                if not trial.reads(mount, "Prefetch"):
                    cell.problems.append("prefetch succeeded, but the mail is not readable")
                if sum(trial.proxy.requests[kind] for kind in CONTENT) > before:
                    cell.problems.append("prefetch succeeded, but the mail is not cached")

        trial.cell(PREFETCH, prefetch, partial(trial.reads, mount, "Prefetch", retry=True), mount)


def copying_a_mount(trial: Trial) -> None:
    """A snapshot of a mount."""
    trial.account.fill("Copy", 4, 1)
    with trial.mounted() as mount:
        copy = mount.path / "Copy"
        destination = trial.home.directory / "mounted"
        trial.cell(
            MOUNT_SNAPSHOT,
            lambda cell: _snapshot(trial, cell, copy, destination, "Copy"),
            lambda: (
                trial.reads(mount, "Copy", retry=True)
                and _snapshot_again(trial, copy, destination, "Copy")
            ),
            mount,
        )


def copying(trial: Trial) -> None:
    """A snapshot of an account."""
    trial.account.fill("Copy", 4, 1)
    destination = trial.home.directory / "snapshots"
    trial.cell(
        SNAPSHOT,
        lambda cell: _snapshot(trial, cell, trial.proxy.url, destination, "Copy"),
        lambda: _snapshot_again(trial, trial.proxy.url, destination, "Copy"),
    )


GROUPS: tuple[tuple[Callable[[Trial], None], tuple[Operation, ...]], ...] = (
    (reading, (READ, BATCH, READAHEAD, PREFETCH)),
    (copying_a_mount, (MOUNT_SNAPSHOT,)),
    (following, (SYNC, PUSH, FREEZE)),
    (mounting, (MOUNT, LISTING, REMOUNT)),
    (copying, (SNAPSHOT,)),
)
"""The operations that share a mount; those that take longest come first."""


def _snapshot(trial: Trial, cell: Cell, source: str | Path, destination: Path, name: str) -> None:
    result = trial.run(cell, "snapshot", "--quiet", source, destination)
    if result.exit_code == 0:
        cell.problems += _check_snapshot(trial, destination, name)
    elif (destination / "latest").exists():
        cell.problems.append("the snapshot failed, but exists")


def _snapshot_again(trial: Trial, source: str | Path, destination: Path, name: str) -> bool:
    result = trial.home.run("snapshot", "--quiet", source, destination, seconds=_GIVE_UP_SECONDS)
    if result.exit_code:
        return False
    trial.cells[-1].problems += _check_snapshot(trial, destination, name)
    return True


def _check_snapshot(trial: Trial, destination: Path, name: str) -> list[str]:
    latest = destination / "latest"
    expected = trial.account.contents[name]
    found = [path.read_bytes() for path in sorted((latest / "mail").rglob("*.eml"))]
    if found != expected:
        return [f"wrong content in a snapshot: {len(found)} of {len(expected)} files"]
    try:
        require_whole(latest)
    except AssertionError as error:
        return [f"the snapshot is damaged: {error}"]
    return []


def _read(path: Path, expected: bytes) -> tuple[str, str]:
    """Read a file; return the name of the error, and what is wrong with the content."""
    try:
        content = path.read_bytes()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        return name, "" if error.errno == errno.EIO else f"unexpected {name}"
    if content == expected:
        return "", ""
    return "", "short file" if expected.startswith(content) else "wrong bytes"


def _unmount(mount: Mounted) -> None:
    if mount.path.is_mount():
        result = mount.home.run("umount", mount.path, seconds=_GIVE_UP_SECONDS)
        assert result.exit_code == 0, result.stderr
