"""Progress bars for going through much mail; where there is no terminal, nothing is shown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from jmapfs.cli.quantities import readable


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
        return Text(f"{readable(int(task.completed))}/{readable(int(task.total or 0))}")


class _Rate(_Column):
    def render(self, task: Task) -> Text:
        return Text(f"{readable(int(task.speed))}/s" if task.speed else "")
