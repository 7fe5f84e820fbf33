"""What a daemon tells the one who started it, until the mount is usable or cannot be made.

In the background it goes through a pipe to the parent, line by line as JSON; in the foreground
straight to the terminal.
"""

from __future__ import annotations

import os
from typing import Protocol

import msgspec

from jmapfs.errors import JmapfsError


class Report(Protocol):
    """Takes what a daemon has to say."""

    def progress(self, listed: int, total: int | None) -> None:
        """Say how many emails are listed, of how many where that is known."""
        ...

    def notice(self, text: str) -> None:
        """Say something that the user should know."""
        ...

    def ready(self) -> None:
        """Say that the tree is complete and the mount answers."""
        ...


class Message(msgspec.Struct, tag=True, frozen=True):
    """A line in the pipe."""


class Progress(Message, frozen=True):
    """So many emails are listed."""

    listed: int
    total: int | None


class Notice(Message, frozen=True):
    """A line for the user."""

    text: str


class Ready(Message, frozen=True):
    """The mount is usable: the parent may end."""


class Failed(Message, frozen=True):
    """The mount could not be made: a line for the user, and the exit code."""

    text: str
    exit_code: int


AnyMessage = Progress | Notice | Ready | Failed


class PipeReport:
    """Reports to a parent process through a pipe; a parent that is gone is not an error."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def progress(self, listed: int, total: int | None) -> None:
        """Say how many emails are listed, of how many where that is known."""
        self._send(Progress(listed, total))

    def notice(self, text: str) -> None:
        """Say something that the user should know."""
        self._send(Notice(text))

    def ready(self) -> None:
        """Say that the tree is complete and the mount answers."""
        self._send(Ready())
        self.close()

    def failed(self, error: BaseException) -> None:
        """Say that the mount could not be made."""
        if isinstance(error, JmapfsError):
            self._send(Failed(str(error), error.exit_code))
        else:
            self._send(Failed(f"a bug, {type(error).__name__}: see the log", 1))
        self.close()

    def close(self) -> None:
        """Nothing more will be reported."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _send(self, message: AnyMessage) -> None:
        if self._descriptor < 0:
            return
        try:
            # Far below PIPE_BUF, so it is written whole or not at all.
            os.write(self._descriptor, msgspec.json.encode(message) + b"\n")
        except BrokenPipeError:
            self.close()
