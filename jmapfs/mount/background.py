"""Going into the background: the daemon is a child, the parent waits for its word.

The fork comes before trio and before anything is opened, so nothing is shared but a pipe. The
mount appears only when the account is listed: until then there is nothing to be seen half-made.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from jmapfs.errors import RelayedError
from jmapfs.mount.report import AnyMessage, Failed, Notice, PipeReport, Progress, Ready, Report

_GRACE_SECONDS: Final = 30


def run_in_background(daemon: Callable[[PipeReport], int], display: Report) -> None:
    """Run `daemon` in a process of its own; return when it reports that it is ready.

    Until then its progress and notices go to `display`. An interruption ends the daemon too.

    Raises:
        RelayedError: the daemon failed; the message and the exit code are its own.
        KeyboardInterrupt: Ctrl-C; the daemon has been ended.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read_end)
            _leave_terminal()
            code = daemon(PipeReport(write_end))
        finally:
            # Whatever happened: this process must not go on as a second command line.
            os._exit(code)
    os.close(write_end)
    try:
        with open(read_end, "rb") as lines:  # noqa: PTH123 - a descriptor
            for line in lines:
                if _relay(msgspec.json.decode(line, type=AnyMessage), display):
                    return
    except KeyboardInterrupt:
        _end(child)
        raise
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    raise RelayedError(f"the daemon ended with {status} and said nothing: see its log", 1)


def _relay(message: AnyMessage, display: Report) -> bool:
    match message:
        case Progress(listed, total):
            display.progress(listed, total)
        case Notice(text):
            display.notice(text)
        case Failed(text, exit_code):
            raise RelayedError(text, exit_code)
        case Ready():
            display.ready()
            return True
    return False


def _leave_terminal() -> None:
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _end(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
        descriptor = os.pidfd_open(child)
        try:
            ended, _, _ = select.select([descriptor], [], [], _GRACE_SECONDS)
        finally:
            os.close(descriptor)
        if not ended:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
