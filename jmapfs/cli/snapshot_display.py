"""What `jmapfs snapshot` shows while it works: a bar on a terminal, now and then a line in cron."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from jmapfs.cli.interruption import Interrupted
from jmapfs.cli.quantities import readable

_LINE_SECONDS: Final = 30.0


class SnapshotDisplay:
    """Shows how far a snapshot is; a context manager, so that the terminal is left tidy.

    With `quiet`, nothing is shown. `path` is where the snapshot is, once it is there.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self.path: Path | None = None
        self._console = console
        self._quiet = quiet
        self._stack = contextlib.ExitStack()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._stage = ""
        self._began = self._line_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._stack.close()
        if isinstance(error, Interrupted) and self.path is not None:
            raise Interrupted(f"interrupted, when {self.path} was there already") from None

    def listed(self, listed: int, total: int | None) -> None:
        """Show how many emails are listed, of how many where that is known."""
        self._show("listing", listed, total, "")

    def copied(self, mails: int, total: int, size: int) -> None:
        """Show how many mails are in the snapshot, of about how many, and the bytes fetched."""
        self._show("copying", mails, total, readable(size))

    def finishing(self) -> None:
        """Show that everything is there, and is being brought to the disk."""
        self._show("writing to the disk", 0, None, "")

    def made(self, path: Path) -> None:
        """Keep in mind that the snapshot is there."""
        self.path = path

    def notice(self, text: str) -> None:
        """Show a line that the user should know."""
        if not self._quiet:
            self._console.print(f"jmapfs: {text}", markup=False)

    def _show(self, stage: str, mails: int, total: int | None, size: str) -> None:
        if self._quiet:
            return
        if stage != self._stage:
            self._stage = stage
            self._began = self._line_at = time.monotonic()
            if self._progress is not None:
                self._progress.reset(self._task, total=total)
        seconds = time.monotonic() - self._began
        rate = f"{mails / seconds:,.0f} mails/s" if mails and seconds > 1 else ""
        if self._console.is_terminal:
            counted = f"{mails:,}/{total:,} mails" if total else f"{mails:,} mails" * bool(mails)
            self._bar().update(
                self._task,
                description=stage,
                completed=mails,
                total=total,
                text="  ".join(part for part in (counted, size, rate) if part),
            )
        elif mails and time.monotonic() - self._line_at >= _LINE_SECONDS:
            self._line_at = time.monotonic()
            of = f" of {total:,}" if total else ""
            parts = [f"{mails:,}{of} mails", size, rate]
            self.notice(f"{stage}: {', '.join(part for part in parts if part)}")

    def _bar(self) -> Progress:
        if self._progress is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console, transient=True, expand=True)
            self._stack.enter_context(self._progress)
            self._task = self._progress.add_task("", total=None, text="")
        return self._progress
