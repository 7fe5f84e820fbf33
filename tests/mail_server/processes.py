"""The processes of a server, such as the master of Cyrus and the imapd and httpd that it forks.

The first one starts as the leader of a session, so that they have their own process group: signals
go to the group, and the server has ended when the group is empty.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil

KILL_DEADLINE = 10.0


def members(group: int) -> list[psutil.Process]:
    """Return the processes of `group` that have not ended; a zombie has."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def command_line(pid: int) -> list[str]:
    """Return the arguments of a process; none if it does not exist."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).cmdline()
    return []


def send_signal(group: int, number: signal.Signals) -> None:
    """Send a signal to all processes of `group`."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def end(group: int, *, timeout: float = 5.0) -> None:
    """Terminate all processes of `group`; kill them after `timeout` seconds.

    Raises:
        RuntimeError: processes have not ended.
    """
    send_signal(group, signal.SIGTERM)
    # A paused process gets SIGTERM only after SIGCONT.
    send_signal(group, signal.SIGCONT)
    if not _have_ended(group, timeout):
        send_signal(group, signal.SIGKILL)
        if not _have_ended(group, KILL_DEADLINE):
            msg = f"processes of the server do not end: {members(group)}"
            raise RuntimeError(msg)


def _have_ended(group: int, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while members(group):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
