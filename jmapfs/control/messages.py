"""What goes over the control socket of a running mount: lines of JSON.

    {"command": "status", "arguments": {}}
    {"answer": {…}}   or   {"error": "…", "exit_code": 9}

One request, one answer, and the connection is closed. A request that begins a session (`hold`) is
followed by any number of others, each sent when the last one is answered, until whoever asks
closes the connection.

The socket lies in a directory that only its owner can enter; that is all the authentication.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from jmapfs.errors import RelayedError


class ControlRequest(msgspec.Struct, frozen=True):
    """What is asked of a mount."""

    command: str
    arguments: dict[str, Any] = {}


class ControlReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """What it answers: `answer`, or `error` with the exit code that goes with it."""

    answer: Any = None
    error: str | None = None
    exit_code: int = 0

    def content(self) -> Any:  # noqa: ANN401 - whatever JSON can hold
        """Return what was answered.

        Raises:
            RelayedError: that was an error; its text and its exit code.
        """
        if self.error is not None:
            raise RelayedError(self.error, self.exit_code)
        return self.answer


@contextlib.contextmanager
def short_path(directory: Path, name: str) -> Iterator[str]:
    """Give a path that fits into a socket address (108 bytes, unix(7)), however deep it lies."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)
