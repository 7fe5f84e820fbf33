"""Homes that leave nothing behind, timed commands, and the memory of processes.

Homes, and so the caches of daemons, are on a real disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.disk import on_disk
from tests.mounts import Home, Mounted
from tests.waits import has_ended

_VARIABLE = "JMAPFS_BENCH"
_GRACE_SECONDS = 10
_MOUNT_SECONDS = 300
_COMMAND_SECONDS = 900
_NOWHERE = "no mail says this: 2b1f9c07"


@contextlib.contextmanager
def bench_directory() -> Iterator[Path]:
    """Provide an empty directory on a real disk during the block."""
    with tempfile.TemporaryDirectory(prefix="jmapfs-bench-", dir=on_disk()) as directory:
        yield Path(directory)


@contextlib.contextmanager
def bench_home(username: str, password: str) -> Iterator[Home]:
    """Provide a home during the block; then end its processes and unmount its mount.

    For example, a `jmapfs mount` that is killed at its deadline leaves a daemon without a mount.
    """
    with bench_directory() as path:
        directory = str(path)
        home = Home(path, username, password, {_VARIABLE: directory})
        try:
            yield home
        finally:
            clear(home)


def clear(home: Home) -> None:
    """End the processes of a home, and unmount its mount."""
    # A daemon unmounts on SIGTERM; one that hangs is killed.
    _end_processes(str(home.directory))
    _fusermount("-u", "-z", home.directory / "mail")


def rounds(runs: int, seconds: float) -> Iterator[int]:
    """Yield the numbers of `runs` runs, but start none after `seconds`."""
    start = time.monotonic()
    for number in range(runs):
        if number and time.monotonic() - start > seconds:
            return
        yield number


def timed_mount(home: Home, account: str, seconds: float = _MOUNT_SECONDS) -> tuple[Mounted, float]:
    """Mount; return the mount and the time until the command and then `ls` returned.

    Raises:
        RuntimeError: the mount fails.
        subprocess.TimeoutExpired: it takes longer than `seconds`.
    """
    path = home.directory / "mail"
    path.mkdir(exist_ok=True)
    start = time.perf_counter()
    result = home.run("mount", account, path, seconds=seconds)
    if result.exit_code:
        raise RuntimeError(f"jmapfs mount: {result.stderr}{home.log()}")
    timed("ls", path)
    return Mounted(home, path, result), time.perf_counter() - start


@dataclass(frozen=True)
class Run:
    """The duration of a command in seconds, and its stderr."""

    seconds: float
    stderr: str


def run(
    *command: str | Path, codes: Container[int] = (0,), variables: Mapping[str, str] | None = None
) -> Run:
    """Run a command and discard its output.

    Raises:
        RuntimeError: its exit code is not one of `codes`.
        subprocess.TimeoutExpired: it takes longer than 15 minutes.
    """
    words = [str(word) for word in command]
    start = time.perf_counter()
    result = subprocess.run(
        words,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=_COMMAND_SECONDS,
        check=False,
    )
    seconds = time.perf_counter() - start
    stderr = result.stderr.decode(errors="replace")
    if result.returncode not in codes:
        raise RuntimeError(f"{shlex.join(words)} ended with {result.returncode}: {stderr}")
    return Run(seconds, stderr)


def timed(*command: str | Path, codes: Container[int] = (0,)) -> float:
    """Run a command like `run`; return its duration in seconds."""
    return run(*command, codes=codes).seconds


def grep(*places: Path) -> tuple[str, ...]:
    """Return a `grep -r` that reads every mail to its end, because it finds nothing.

    With output to /dev/null, grep would stop at the first match.
    """
    return ("grep", "-r", _NOWHERE, *map(str, places))


def ripgrep(threads: int, *places: Path) -> tuple[str, ...]:
    """Return an `rg -uu` that reads every mail to its end with this number of threads."""
    return ("rg", "-uu", f"-j{threads}", _NOWHERE, *map(str, places))


def timed_grep(*places: Path) -> float:
    """Read every mail with grep; return its duration in seconds."""
    return timed(*grep(*places), codes=(1,))


def mailboxes(tree: Path) -> list[Path]:
    """Return the top directories of a tree, which contain all mail.

    They do not include `.jmapfs.json`, whose content is never cached.
    """
    return sorted(path for path in tree.iterdir() if path.is_dir())


def unmount(mount: Mounted) -> None:
    """Unmount without starting a Python, and wait until the daemon has ended.

    Raises:
        RuntimeError: the unmount fails, or the daemon does not end.
    """
    daemon = mount.ask_status().pid
    result = _fusermount("-u", mount.path)
    if result.returncode:
        raise RuntimeError(f"fusermount3: {result.stderr.decode(errors='replace')}")
    deadline = time.monotonic() + _GRACE_SECONDS
    while not has_ended(daemon):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the daemon does not end: {mount.home.log()}")
        time.sleep(0.01)


def memory(pid: int) -> tuple[float, float]:
    """Return the peak and the current resident memory of a process, in MB (10^6 bytes)."""
    text = Path(f"/proc/{pid}/status").read_text()
    sizes = dict(re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB$", text, re.MULTILINE))
    return int(sizes["VmHWM"]) * 1024 / 1e6, int(sizes["VmRSS"]) * 1024 / 1e6


def _fusermount(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["fusermount3", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_GRACE_SECONDS,
        check=False,
    )


def _end_processes(mark: str) -> None:
    ours = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_VARIABLE) == mark:
                process.terminate()
                ours.append(process)
    _, alive = psutil.wait_procs(ours, timeout=_GRACE_SECONDS)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=_GRACE_SECONDS)
