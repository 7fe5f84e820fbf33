"""Progress bars for going through much mail; where there is no terminal, nothing is shown.

Names of files and keywords as they are shown: they come from mail, and mail from anybody.

Tables as plain lines, which stay whole in a pipe, a mail of cron's, and a narrow terminal.

What a command shows on stderr while it works: a progress bar on a terminal, lines elsewhere.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from jmapfs.cli.options import format_size


def json_document(value: object) -> str:
    """Return structs, and what they hold, as a JSON document for people and programs.

    Names of files that are no text are in it as well, as Python writes them: with lone surrogates.
    """
    return escaped_json(json.dumps(msgspec.to_builtins(value), ensure_ascii=False, indent=2))


def escaped_json(document: str) -> str:
    r"""Return JSON with an escape such as `\u009b` for each character that is not printable.

    It means the same, and has the same line breaks.
    """
    if document.isprintable():
        return document
    return "".join(
        one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in document
    )


def columns(rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> Iterator[str]:
    """Yield a line for each row; the columns that `numbers` counts from 0 are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if number in numbers else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


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


class PrefetchDisplay:
    """Shows how far `jmapfs prefetch` has come, on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def checking(self, mails: int) -> Iterator[Callable[[int], None]]:
        """Show a bar; what this gives is to be called with the number of mails just checked."""
        with counting(self._console, "checking the cache", mails) as show:
            yield show

    @contextlib.contextmanager
    def fetching(self, mails: int, size: int) -> Iterator[Callable[[int, int], None]]:
        """Show a bar; what this gives is to be called with the mails that came, and their bytes."""
        with weighing(self._console, "fetching mail", mails, size) as show:
            yield show


@contextlib.contextmanager
def counting(console: Console, what: str, mails: int) -> Iterator[Callable[[int], None]]:
    """Show a bar for so many mails; what this gives is to be called with how many more are done."""
    with _progress(console, _Mails(), TimeRemainingColumn()) as progress:
        task = progress.add_task(what, total=mails, mails=0, of=mails)

        def show(done: int) -> None:
            mails = progress.tasks[task].fields["mails"] + done
            progress.update(task, advance=done, mails=mails)

        yield show


@contextlib.contextmanager
def weighing(
    console: Console, what: str, mails: int, size: int
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar for mails that have `size` bytes; as `counting`, with the bytes that are done."""
    with _progress(console, _Mails(), _Bytes(), _Rate(), TimeRemainingColumn()) as progress:
        task = progress.add_task(what, total=size, mails=0, of=mails)

        def show(done: int, done_bytes: int) -> None:
            mails = progress.tasks[task].fields["mails"] + done
            progress.update(task, advance=done_bytes, mails=mails)

        yield show


def _progress(console: Console, *columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        *columns,
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
    )


class _Column(ProgressColumn):
    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))


class _Mails(_Column):
    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['mails']:,}/{task.fields['of']:,} mails")


class _Bytes(_Column):
    def render(self, task: Task) -> Text:
        return Text(f"{format_size(int(task.completed))}/{format_size(int(task.total or 0))}")


class _Rate(_Column):
    def render(self, task: Task) -> Text:
        return Text(f"{format_size(int(task.speed))}/s" if task.speed else "")
