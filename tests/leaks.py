"""Checks that a test leaves no mount, process or open file behind.

Only those of this run count: mounts below its temporary or working directory, and processes that
descend from it or have its mark in their environment.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from jmapfs.control.mounts import mounts
from tests.mail_server.server import MailServer, running

# How long a process or connection may take to end.
_GRACE = 3.0

# Every process of a run has this in its environment, even a daemon.
RUN_VARIABLE = "JMAPFS_TEST_RUN"
RUN = f"{os.getpid()}-{random.randbytes(4).hex()}"

_HARMLESS_FILES = ("/dev/urandom", "/dev/random")


@dataclass(frozen=True)
class Resources:
    """The mounts, processes and open files at one moment."""

    below: tuple[Path, ...]
    mounts: frozenset[str]
    pids: frozenset[int]
    files: Counter[str]
    servers: frozenset[MailServer]

    @classmethod
    def now(cls, *below: Path) -> Resources:
        servers = frozenset(running)
        return cls(below, _mounts(below), frozenset(psutil.pids()), _files(), servers)


@dataclass(frozen=True)
class Leaks:
    """The resources that a test has left behind."""

    mounts: frozenset[str]
    processes: tuple[psutil.Process, ...]
    files: Counter[str]

    @classmethod
    def since(cls, before: Resources) -> Leaks:
        mounts = _mounts(before.below) - before.mounts
        return cls(mounts, _processes_since(before), _files() - before.files)

    def __bool__(self) -> bool:
        return bool(self.mounts or self.processes or self.files)

    def __str__(self) -> str:
        processes = [f"process {one.pid}: {_command(one)}" for one in self.processes]
        mounts = [f"mount {one}" for one in sorted(self.mounts)]
        files = [f"open file {name}" for name in self.files.elements()]
        return "\n".join(["the test left behind", *mounts, *processes, *files])

    def clear(self) -> None:
        """Remove mounts and processes; files cannot be closed safely from outside."""
        for mount in self.mounts:
            subprocess.run(["fusermount3", "-u", "-z", mount], check=False, capture_output=True)
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self.processes, timeout=_GRACE)


@pytest.fixture(autouse=True)
def no_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves something behind, and remove it."""
    before = Resources.now(tmp_path_factory.getbasetemp(), Path.cwd())
    yield
    leaks = Leaks.since(before)
    if leaks:
        # This closes files of garbage, each with a warning that fails the test.
        gc.collect()
        deadline = time.monotonic() + _GRACE
        while (leaks := Leaks.since(before)) and time.monotonic() < deadline:
            time.sleep(0.02)
    if leaks:
        message = str(leaks)
        leaks.clear()
        pytest.fail(message, pytrace=False)


def _mounts(below: tuple[Path, ...]) -> frozenset[str]:
    return frozenset(
        str(mount.mountpoint)
        for mount in mounts()
        if mount.fstype.split(".")[0] in {"fuse", "fuseblk"}
        and any(mount.mountpoint.is_relative_to(directory) for directory in below)
    )


def _files() -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            target = str(entry.readlink())
            if not target.startswith(_HARMLESS_FILES):
                found[target] += 1
    # Without the descriptor of the directory itself.
    return found - Counter([f"/proc/{os.getpid()}/fd"])


def _processes_since(before: Resources) -> tuple[psutil.Process, ...]:
    shared = {group for server in before.servers for group in server.groups}
    found = []
    for pid in set(psutil.pids()) - before.pids:
        with suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE or os.getpgid(pid) in shared:
                continue
            if _is_ours(process, before.below):
                found.append(process)
    return tuple(found)


def _is_ours(process: psutil.Process, below: tuple[Path, ...]) -> bool:
    try:
        if process.environ().get(RUN_VARIABLE) == RUN:
            return True
    except psutil.AccessDenied:
        # A daemon protects its memory, so only root can read its environment.
        arguments = process.cmdline()
        if any(Path(one).is_relative_to(path) for one in arguments for path in below):
            return True
    return any(parent.pid == os.getpid() for parent in process.parents())


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()) or process.name()
    return "?"
