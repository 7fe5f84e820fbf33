"""What a command shows on stderr while it works: a progress bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)


class MountDisplay:
    """Shows how a mount comes to be; a context manager, so that the terminal is left tidy."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def progress(self, listed: int, total: int | None) -> None:
        """Show how many emails are listed, of how many where that is known."""
        if not console.is_terminal:
            return
        if self._progress is None:
            columns = (TextColumn("listing emails"), BarColumn(), MofNCompleteColumn())
            self._progress = Progress(*columns, console=console, transient=True)
            self._stack.enter_context(self._progress)
            self._task = self._progress.add_task("", total=None)
        if self._task is not None:
            self._progress.update(self._task, completed=listed, total=total)

    def notice(self, text: str) -> None:
        """Show a line that the user should know."""
        console.print(f"jmapfs: {text}", markup=False)

    def ready(self) -> None:
        """Take note that the mount is usable: there is nothing to show."""
