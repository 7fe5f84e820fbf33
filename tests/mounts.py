"""Real mounts for tests: the real command in its own home; everything is unmounted at the end.

with Home(tmp_path, account) as home, home.mounted(url) as mount:
    (mount.path / "Inbox").iterdir()
    assert mount.status()["http"]["blobs"] == 0
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jmapfs.control.messages import (
    DescribeRequest,
    FreezeRequest,
    Lease,
    MailsRequest,
    MountStatus,
    RenewRequest,
    Request,
    StatusRequest,
    SyncRequest,
    ThawRequest,
    TreeDescription,
)
from jmapfs.control.mounts import resolve
from jmapfs.control.socket_client import ask
from jmapfs.errors import JmapfsError, NotMountedError
from jmapfs.index.rows import EmailRow
from tests.forked import Forker, run_forked

COMMAND_SECONDS = 60

JMAPFS = (sys.executable, "-m", "jmapfs")

# An interpreter reads these variables when it starts.
_READ_AT_START = ("LANG", "LC_", "PYTHON")

# The command with leases of two seconds instead of thirty.
SHORT_LEASE = (
    sys.executable,
    "-c",
    """
from jmapfs.control import socket_client
socket_client.LEASE_SECONDS, socket_client.RENEWAL_SECONDS = 2.0, 0.5
from jmapfs.cli.main import main
main()
""",
)

_R = TypeVar("_R")


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it printed."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass
class Home:
    """A user's surroundings: configuration, caches and logs below one directory."""

    directory: Path
    username: str = ""
    password: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    program: Sequence[str] = JMAPFS

    def __post_init__(self) -> None:
        for name in ("cache", "state", "run", "config"):
            (self.directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def cache(self) -> Path:
        """The cache directory."""
        return self.directory / "cache" / "jmapfs"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a command."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("JMAPFS_U")}
        for name in ("JMAPFS_TOKEN", "JMAPFS_PASSWORD", "JMAPFS_CONFIG"):
            own.pop(name, None)
        own |= {
            f"XDG_{kind.upper()}_HOME": str(self.directory / kind)
            for kind in ("cache", "state", "config")
        }
        own["XDG_RUNTIME_DIR"] = str(self.directory / "run")
        if self.username:
            own |= {"JMAPFS_USERNAME": self.username, "JMAPFS_PASSWORD": self.password}
        return own | self.variables

    def run(self, *arguments: str | Path, seconds: float = COMMAND_SECONDS) -> Result:
        """Run `jmapfs` with these arguments to its end."""
        if self.program != JMAPFS or any(map(_is_read_at_start, self.variables)):
            return run(*self.program, *arguments, environment=self.environment, seconds=seconds)
        return _result(run_forked(commands(), [*map(str, arguments)], self.environment, seconds))

    def mount(self, account: str, path: Path, *options: str | Path) -> Mounted:
        """Mount, and fail the test where that fails."""
        # A dead mount there answers no question.
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        result = self.run("mount", *options, account, path)
        assert result.exit_code == 0, result.stderr + self.log()
        return Mounted(self, path, result)

    @contextlib.contextmanager
    def mounted(
        self, account: str, *options: str | Path, path: Path | None = None
    ) -> Iterator[Mounted]:
        """Have the account mounted while the context lasts; its log must hold no bug."""
        mount = self.mount(account, path or self.directory / "mnt", *options)
        try:
            yield mount
        finally:
            mount.clear()
        assert "Traceback" not in self.log(), self.log()

    def log(self) -> str:
        """Return the logs of all daemons."""
        return "".join(
            path.read_text() for path in sorted((self.directory / "state").rglob("*.log*"))
        )


@dataclass
class Mounted:
    """A mount that exists."""

    home: Home
    path: Path
    result: Result

    def status(self) -> dict[str, Any]:
        """Return `jmapfs status --json`."""
        result = self.home.run("status", "--json", self.path)
        assert result.exit_code == 0, result.stderr
        status: dict[str, Any] = json.loads(result.stdout)
        return status

    def counts(self) -> Counts:
        """Return what has been asked of the daemon so far, and by it."""
        status = self.ask_status().document()
        return Counts(status["fuse"], status["http"])

    def ask(self, request: Request[_R]) -> _R:
        """Send a request to the daemon as the commands do, without a process for each."""
        return ask(resolve(self.path), request, timeout=COMMAND_SECONDS)

    def ask_status(self) -> MountStatus:
        """Return the status, without a process."""
        return self.ask(StatusRequest())

    def sync(self) -> None:
        """Do what `jmapfs sync` does, without a process."""
        self.ask(SyncRequest())

    def freeze(self, seconds: float) -> None:
        """Do what `jmapfs freeze --timeout` does, without a process."""
        self.ask(FreezeRequest(seconds=seconds, limit=seconds))

    def thaw(self) -> bool:
        """Do what `jmapfs thaw` does, without a process; return whether the mount was frozen."""
        return self.ask(ThawRequest()).was_frozen

    @property
    def is_frozen(self) -> bool:
        """Whether the mount is frozen now."""
        return self.ask_status().frozen is not None

    @contextlib.contextmanager
    def leased(self, seconds: float = COMMAND_SECONDS) -> Iterator[FrozenMount]:
        """Freeze the mount under a lease of `seconds`, as a snapshot does, within the context."""
        lease = self.ask(FreezeRequest(seconds=seconds, join=True))
        try:
            yield FrozenMount(self, lease)
        finally:
            with contextlib.suppress(NotMountedError):
                self.ask(ThawRequest(lease.id))

    def umount(self) -> None:
        """Unmount, and fail the test where that fails."""
        result = self.home.run("umount", self.path)
        assert result.exit_code == 0, result.stderr

    def clear(self) -> None:
        """Unmount if it is still there, dead or alive."""
        result = self.home.run("umount", self.path)
        assert result.exit_code in {0, 10}, result.stderr

    def files(self) -> dict[str, os.stat_result]:
        """Return all emails, by path from the mountpoint, with what `stat` says of them."""
        return {path: status for path, status in self.entries().items() if path.endswith(".eml")}

    def entries(self) -> dict[str, os.stat_result]:
        """Return everything in the tree by its path from the mountpoint, `.jmapfs.json` aside."""
        found = {"": self.path.stat()}
        for directory, directories, files in os.walk(self.path, onerror=_raise):
            for name in (*directories, *files):
                path = Path(directory, name)
                found[str(path.relative_to(self.path))] = path.lstat()
        del found[".jmapfs.json"]
        return found

    def contents(self) -> dict[str, bytes]:
        """Read all emails."""
        return {path: (self.path / path).read_bytes() for path in self.files()}


@dataclass(frozen=True)
class FrozenMount:
    """A mount that a lease keeps frozen, and what it tells a snapshot."""

    mount: Mounted
    lease: Lease

    def describe(self, path: str = "") -> TreeDescription:
        """Describe the tree at and below a path."""
        return self.mount.ask(DescribeRequest(self.lease.id, path))

    def emails(self, path: str = "", count: int = 7) -> list[EmailRow]:
        """Return all emails at and below a path, asking for about `count` at a time."""
        found: list[EmailRow] = []
        position: int | None = 0
        while position is not None:
            part = self.mount.ask(MailsRequest(self.lease.id, path, position, count))
            found += part.emails
            position = part.position
        return found

    def is_valid(self) -> bool:
        """Renew the lease; return whether it was still there."""
        try:
            self.mount.ask(RenewRequest(self.lease.id, COMMAND_SECONDS))
        except JmapfsError:
            return False
        return True


@dataclass(frozen=True)
class Counts:
    """Counts of operations (`fuse`) and of the network (`http`); subtract to see what was done."""

    fuse: Mapping[str, int]
    http: Mapping[str, int]

    def __sub__(self, before: Counts) -> Counts:
        return Counts(
            {name: count - before.fuse.get(name, 0) for name, count in self.fuse.items()},
            {name: count - before.http.get(name, 0) for name, count in self.http.items()},
        )

    @property
    def reads(self) -> int:
        """READs that reached the daemon."""
        return self.fuse.get("read", 0)

    @property
    def blobs(self) -> int:
        """Blobs that were downloaded."""
        return self.http["blobs"]


def fixed(status: os.stat_result) -> tuple[int, ...]:
    """Return what of a file or directory is never to change."""
    return (
        status.st_ino,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def portable(status: os.stat_result) -> tuple[int, ...]:
    """Return the part of it that does not depend on the index: a directory without its times."""
    return fixed(status)[:-2] if stat.S_ISDIR(status.st_mode) else fixed(status)


def run(
    *arguments: str | Path, environment: Mapping[str, str], seconds: float = COMMAND_SECONDS
) -> Result:
    """Run a command to its end.

    This waits until its output is closed, so a daemon that keeps it open fails the test.
    """
    result = subprocess.run(
        [*map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        check=False,
    )
    return _result(result)


def _result(process: subprocess.CompletedProcess[bytes]) -> Result:
    return Result(process.returncode, process.stdout.decode(), process.stderr.decode())


def _is_read_at_start(variable: str) -> bool:
    return variable.startswith(_READ_AT_START)


@functools.cache
def commands() -> Forker:
    """Return the process that forks commands, for all tests of this process."""
    names = ("freeze", "mount", "prefetch", "snapshot", "snapshots", "status", "verify", "watch")
    modules = [f"jmapfs.cli.{name}_command" for name in names]
    return Forker("jmapfs.__main__:main", *modules, "jmapfs.daemon.daemon")


def command(*arguments: str | Path, **variables: str) -> str:
    """Run another program to its end; fail the test where it fails."""
    result = subprocess.run(
        [str(argument) for argument in arguments],
        env={**os.environ, "LC_ALL": "C.UTF-8", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    return result.stdout.decode(errors="surrogateescape")


def assert_refused(
    result: Result, home: Home, exit_code: int, *words: str, mountpoint: Path | None = None
) -> None:
    """One line on stderr with these words, the exit code, no traceback, no secret, no mount."""
    assert result.exit_code == exit_code, result
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("jmapfs: ")
    for word in words:
        assert word in lines[0]
    for text in (result.stderr, home.log()):
        assert "Traceback" not in text
        assert not home.password or home.password not in text
    mountpoint = mountpoint or home.directory / "mnt"
    # Other tests mount at the same time, not all of them at names in UTF-8.
    mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    assert str(mountpoint) not in mounts


def _raise(error: OSError) -> None:
    raise error
