"""What a command shows while it works: a bar on a terminal, otherwise nothing or a few lines."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Self, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from jmapfs.cli.options import format_size
from jmapfs.cli.output import Screen, is_terminal, notice, show_waiting
from jmapfs.cli.signals import InterruptedBySignal
from jmapfs.control.socket_client import waiting_texts
from jmapfs.errors import JmapfsError
from jmapfs.text import escaped

_LISTING: Final = "listing emails"
_WATCH_SECONDS: Final = 1.0
_LINE_SECONDS: Final = 30.0

# FORCE_COLOR and the like would send control sequences into a pipe or a file.
console: Final = Console(
    file=cast("IO[str]", Screen()), force_terminal=is_terminal(), highlight=False, soft_wrap=True
)


def _progress(*columns: ProgressColumn, shown: bool = True, expand: bool = False) -> Progress:
    return Progress(
        *columns,
        console=console,
        transient=True,
        expand=expand,
        # A result that is printed meanwhile belongs on stdout.
        redirect_stdout=False,
        disable=not (shown and console.is_interactive),
    )


@contextmanager
def waiting_shown(mountpoint: Path) -> Iterator[None]:
    """While the context lasts, show on a terminal if a server asks a mount to wait."""
    ended = threading.Event()
    if is_terminal():
        threading.Thread(target=_watch, args=(mountpoint, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _watch(mountpoint: Path, ended: threading.Event) -> None:
    shown: set[str] = set()
    while not ended.wait(_WATCH_SECONDS):
        with suppress(JmapfsError):
            texts = waiting_texts(mountpoint)
            if not ended.is_set():
                for text in texts - shown:
                    show_waiting(text)
            shown = texts


class MountDisplay(AbstractContextManager["MountDisplay"]):
    """The `StartupReport` of a command on a terminal: shows the progress while a mount starts."""

    def __init__(self) -> None:
        self._progress = _progress(_DescriptionColumn(), BarColumn(), MofNCompleteColumn())
        self._task = self._progress.add_task(_LISTING, total=None)
        self._ready = False

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def progress(self, listed: int, total: int | None) -> None:
        """Show how many emails are listed, and the total if it is known."""
        self._progress.start()
        self._progress.update(self._task, description=_LISTING, completed=listed, total=total)

    def notice(self, text: str) -> None:
        """Show a message for the user."""
        notice(text)

    def waiting(self, text: str) -> None:
        """Show that the server asks to wait, until the mount is ready."""
        if not self._ready:
            self._progress.start()
            self._progress.update(self._task, description=text)

    def ready(self) -> None:
        """Show nothing more: in the background, the command ends when the mount is ready."""
        self._ready = True
        self._progress.stop()


class MailProgress:
    """A progress bar for a known number of mails and, with `size`, of bytes; a context manager."""

    def __init__(self, description: str, mails: int, size: int | None = None) -> None:
        self._done = 0
        self._counts_bytes = size is not None
        self._progress = _progress(
            _DescriptionColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[done]:,}/{task.fields[mails]:,} mails", markup=False),
            *((_BytesColumn(),) if self._counts_bytes else ()),
            TimeRemainingColumn(),
            expand=True,
        )
        total = mails if size is None else size
        self._task = self._progress.add_task(description, total=total, done=0, mails=mails)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, mails: int, size: int = 0) -> None:
        """Show that `mails` more mails, with `size` bytes, are done."""
        self._done += mails
        step = size if self._counts_bytes else mails
        self._progress.update(self._task, advance=step, done=self._done)


class WorkDisplay:
    """Shows on a terminal that a command works; a context manager."""

    def __init__(self, description: str, *, quiet: bool) -> None:
        self._progress = _progress(SpinnerColumn(), _DescriptionColumn(), shown=not quiet)
        self._task = self._progress.add_task(description, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, description: str) -> None:
        """Show what the command does now."""
        self._progress.update(self._task, description=description)


class SnapshotDisplay(AbstractContextManager["SnapshotDisplay"]):
    """Shows the progress of a snapshot (`SnapshotReport`); a context manager.

    Without a terminal, there is a line every 30 seconds. With `quiet`, nothing is shown. `path` is
    the finished snapshot, or None.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.path: Path | None = None
        self._quiet = quiet
        self._progress = _progress(
            _DescriptionColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
            shown=not quiet,
            expand=True,
        )
        self._task = self._progress.add_task("", total=None, text="")
        self._stage = ""
        self._stage_began = self._last_line = time.monotonic()

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._progress.stop()
        if isinstance(error, InterruptedBySignal) and self.path is not None:
            raise InterruptedBySignal(f"interrupted, but {self.path} is complete") from None

    def listed(self, listed: int, total: int | None) -> None:
        """Show how many emails are listed, and the total if it is known."""
        self._show("listing", listed, total, "")

    def copied(self, mails: int, total: int, size: int) -> None:
        """Show the mails in the snapshot, their approximate total, and the bytes fetched."""
        self._show("copying", mails, total, format_size(size))

    def syncing(self) -> None:
        """Show that the files are being synced to the disk."""
        self._show("writing to the disk", 0, None, "")

    def published(self, path: Path) -> None:
        """Store the path of the finished snapshot."""
        self.path = path

    def notice(self, text: str) -> None:
        """Show a message for the user."""
        if not self._quiet:
            notice(text)

    def waiting(self, text: str) -> None:
        """On a terminal, show that the server asks to wait, until there is progress."""
        self._progress.start()
        self._progress.update(self._task, description=text)

    def _show(self, stage: str, mails: int, total: int | None, size: str) -> None:
        if self._quiet:
            return
        if stage != self._stage:
            self._stage = stage
            self._stage_began = self._last_line = time.monotonic()
            self._progress.reset(self._task, total=total)
        seconds = time.monotonic() - self._stage_began
        rate = f"{mails / seconds:,.0f} mails/s" if mails and seconds > 1 else ""
        if console.is_interactive:
            counted = f"{mails:,}/{total:,} mails" if total else f"{mails:,} mails" * bool(mails)
            self._progress.start()
            self._progress.update(
                self._task,
                description=stage,
                completed=mails,
                total=total,
                text="  ".join(part for part in (counted, size, rate) if part),
            )
        elif mails and time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            of = f" of {total:,}" if total else ""
            parts = [f"{mails:,}{of} mails", size, rate]
            self.notice(f"{stage}: {', '.join(part for part in parts if part)}")


class _DescriptionColumn(ProgressColumn):
    """The description of a task, which may contain text from outside."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text(escaped(task.description))


class _BytesColumn(ProgressColumn):
    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        size = f"{format_size(int(task.completed))}/{format_size(int(task.total or 0))}"
        return Text(f"{size} {format_size(int(task.speed))}/s" if task.speed else size)
