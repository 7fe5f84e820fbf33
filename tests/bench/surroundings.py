"""What measurements share: a home that leaves nothing behind, a stopwatch, a process's memory."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.mounting import Home, Mounted

_VARIABLE = "JMAPFS_BENCH"
_GRACE_SECONDS = 10
_READ_SECONDS = 300


@contextlib.contextmanager
def bench_home(username: str, password: str) -> Iterator[Home]:
    """Have a home for the time of the block; then whatever is mounted in it or runs from it goes.

    A `jmapfs mount` that is killed at its deadline, say, leaves a daemon that has not mounted yet.
    """
    with tempfile.TemporaryDirectory(prefix="jmapfs-bench-") as directory:
        home = Home(Path(directory), username, password, {_VARIABLE: directory})
        try:
            yield home
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                home.run("umount", home.directory / "mail", seconds=_GRACE_SECONDS)
            _end_processes(directory)
            subprocess.run(
                ["fusermount3", "-u", "-z", home.directory / "mail"],
                capture_output=True,
                check=False,
            )


def timed_mount(home: Home, account: str, seconds: float) -> tuple[Mounted, float]:
    """Mount; return the mount and how long it took until the command came back and `ls` did.

    Raises:
        RuntimeError: it does not mount.
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


def timed(*command: str | Path) -> float:
    """Run a command whose output nobody reads; return how many seconds it took.

    Raises:
        subprocess.CalledProcessError: it fails.
        subprocess.TimeoutExpired: it takes minutes.
    """
    start = time.perf_counter()
    subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=_READ_SECONDS,
        check=True,
    )
    return time.perf_counter() - start


def memory(pid: int) -> tuple[float, float]:
    """Return the peak and the current resident memory of a process, in MB (10^6 bytes)."""
    text = Path(f"/proc/{pid}/status").read_text()
    sizes = dict(re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB$", text, re.MULTILINE))
    return int(sizes["VmHWM"]) * 1024 / 1e6, int(sizes["VmRSS"]) * 1024 / 1e6


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
