"""The processes of one Cyrus: the master and the imapd and httpd that it forks.

The master is started as the leader of a session, so that they all share a process group which
nothing else is in: signals go to the group, and the group is empty when all of them are gone.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil


def members(group: int) -> list[psutil.Process]:
    """Return the processes of `group` that live; a zombie only waits for its parent."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def command_line(pid: int) -> list[str]:
    """Return the arguments of a process, none where there is no such process."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).cmdline()
    return []


def tell(group: int, number: signal.Signals) -> None:
    """Send a signal to all of `group`."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def end(group: int, *, patience: float = 5.0) -> None:
    """End all of `group`, politely for `patience` seconds and then for good."""
    tell(group, signal.SIGTERM)
    # One that was paused takes no notice of SIGTERM before it goes on.
    tell(group, signal.SIGCONT)
    if not _gone(group, patience):
        tell(group, signal.SIGKILL)
        if not _gone(group, patience):
            msg = f"processes of Cyrus that cannot be ended: {members(group)}"
            raise RuntimeError(msg)


def _gone(group: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while members(group):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
