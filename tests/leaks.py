"""The check that a test leaves nothing behind: no mount, no process, no open file.

Only what this run made counts: mounts below its temporary or its working directory, processes
that carry its mark in their environment or descend from it. A developer's own mount is none of
its business.
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

from tests import cyrus as cyrus_server
from tests.cyrus import Cyrus

# How long a process or connection that was told to end may take for it.
_GRACE = 3.0

# Every process of a run carries this in its environment, also a daemon that cut all other ties.
RUN_VARIABLE = "JMAPFS_TEST_RUN"
RUN = f"{os.getpid()}-{random.randbytes(4).hex()}"

_HARMLESS_FILES = ("/dev/urandom", "/dev/random")


@dataclass(frozen=True)
class Held:
    """What a test may not leave behind, at one moment."""

    below: tuple[Path, ...]
    mounts: frozenset[str]
    pids: frozenset[int]
    files: Counter[str]
    servers: frozenset[Cyrus]

    @classmethod
    def now(cls, *below: Path) -> Held:
        servers = frozenset(cyrus_server.running)
        return cls(below, _mounts(below), frozenset(psutil.pids()), _files(), servers)


@dataclass(frozen=True)
class Leaks:
    """What was not there before."""

    mounts: frozenset[str]
    processes: tuple[psutil.Process, ...]
    files: Counter[str]

    @classmethod
    def since(cls, before: Held) -> Leaks:
        mounts = _mounts(before.below) - before.mounts
        return cls(mounts, _processes_since(before), _files() - before.files)

    def __bool__(self) -> bool:
        return bool(self.mounts or self.processes or self.files)

    def __str__(self) -> str:
        processes = [f"process {one.pid}: {_command(one)}" for one in self.processes]
        mounts = [f"mount {one}" for one in sorted(self.mounts)]
        files = [f"open file {name}" for name in self.files.elements()]
        return "\n".join(["the test leaves behind", *mounts, *processes, *files])

    def clear(self) -> None:
        """Remove mounts and processes; there is no safe way to close a file of someone else."""
        for mount in self.mounts:
            subprocess.run(["fusermount3", "-u", "-z", mount], check=False, capture_output=True)
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self.processes, timeout=_GRACE)


@pytest.fixture(autouse=True)
def no_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves something behind, and clear it away."""
    before = Held.now(tmp_path_factory.getbasetemp(), Path.cwd())
    yield
    leaks = Leaks.since(before)
    if leaks:
        # Files that only garbage holds are closed now, each with a warning that fails the test.
        gc.collect()
        deadline = time.monotonic() + _GRACE
        while (leaks := Leaks.since(before)) and time.monotonic() < deadline:
            time.sleep(0.02)
    if leaks:
        message = str(leaks)
        leaks.clear()
        pytest.fail(message, pytrace=False)


def _mounts(below: tuple[Path, ...]) -> frozenset[str]:
    found = set()
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        place, _, kind = line.partition(" - ")
        if kind.split(" ")[0].split(".")[0] in {"fuse", "fuseblk"}:
            # The kernel writes a space as \040, and so on.
            escaped = place.split(" ")[4].encode("latin-1", "backslashreplace")
            mountpoint = Path(escaped.decode("unicode_escape"))
            if any(mountpoint.is_relative_to(directory) for directory in below):
                found.add(str(mountpoint))
    return frozenset(found)


def _files() -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            target = str(entry.readlink())
            if not target.startswith(_HARMLESS_FILES):
                found[target] += 1
    # The directory that is being read was open itself.
    return found - Counter([f"/proc/{os.getpid()}/fd"])


def _processes_since(before: Held) -> tuple[psutil.Process, ...]:
    shared = {server.group for server in before.servers}
    found = []
    for pid in set(psutil.pids()) - before.pids:
        with suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE or os.getpgid(pid) in shared:
                continue
            if _is_ours(process):
                found.append(process)
    return tuple(found)


def _is_ours(process: psutil.Process) -> bool:
    with suppress(psutil.AccessDenied):
        if process.environ().get(RUN_VARIABLE) == RUN:
            return True
    return any(parent.pid == os.getpid() for parent in process.parents())


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()) or process.name()
    return "?"
