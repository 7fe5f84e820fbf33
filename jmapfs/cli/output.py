"""The output of commands: JSON and tables on stdout, progress and notices on stderr.

Progress bars are shown only on a terminal.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from jmapfs.cli.options import escaped, format_size
from jmapfs.control.socket_client import waiting_texts
from jmapfs.errors import JmapfsError

_LISTING: Final = "listing emails"
_WATCH_SECONDS: Final = 1.0

console: Final = Console(stderr=True, highlight=False, soft_wrap=True)


def notice(text: str) -> None:
    """Print a message for the user on stderr."""
    console.print(f"jmapfs: {text}", markup=False)


def show_waiting(text: str, seconds: float = 0.0) -> None:  # noqa: ARG001 - an `on_wait`
    """On a terminal, print that the server asks to wait."""
    if console.is_interactive:
        notice(text)


@contextmanager
def waiting_shown(mountpoint: Path) -> Iterator[None]:
    """While the context lasts, show on a terminal if a server asks a mount to wait."""
    ended = threading.Event()
    if console.is_interactive:
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
                    show_waiting(escaped(text))
            shown = texts


def json_document(value: object) -> str:
    """Return an indented JSON document from structs, or from builtins that contain structs.

    Undecodable bytes in file names become lone surrogates, as in Python strings.
    """
    return escaped_json(json.dumps(msgspec.to_builtins(value), ensure_ascii=False, indent=2))


def escaped_json(document: str) -> str:
    r"""Return JSON with an escape such as `\u009b` for each character that is not printable.

    The document keeps its meaning and its line breaks.
    """
    if document.isprintable():
        return document
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in document
    )


def columns(rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> Iterator[str]:
    """Yield a line for each row. The columns with indices in `numbers` are aligned right.

    The lines are plain text, and are not cut at the width of a terminal.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if index in numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


class MountDisplay(AbstractContextManager["MountDisplay"]):
    """The `StartupReport` of a command on a terminal: shows the progress while a mount starts."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=not console.is_interactive,
        )
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
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[done]:,}/{task.fields[mails]:,} mails"),
            *((_BytesColumn(),) if self._counts_bytes else ()),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_interactive,
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


class _BytesColumn(ProgressColumn):
    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        size = f"{format_size(int(task.completed))}/{format_size(int(task.total or 0))}"
        return Text(f"{size} {format_size(int(task.speed))}/s" if task.speed else size)
