"""The progress bars of `jmapfs prefetch`; where there is no terminal, nothing is shown."""

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
    """Shows how far it has come, on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def checking(self, mails: int) -> Iterator[Callable[[int], None]]:
        """Show a bar; what this gives is to be called with the number of mails just checked."""
        with self._progress(_Mails(), TimeRemainingColumn()) as progress:
            task = progress.add_task("checking the cache", total=mails, mails=0, of=mails)

            def show(checked: int) -> None:
                mails = progress.tasks[task].fields["mails"] + checked
                progress.update(task, advance=checked, mails=mails)

            yield show

    @contextlib.contextmanager
    def fetching(self, mails: int, size: int) -> Iterator[Callable[[int, int], None]]:
        """Show a bar; what this gives is to be called with the mails that came, and their bytes."""
        with self._progress(_Mails(), _Bytes(), _Rate(), TimeRemainingColumn()) as progress:
            task = progress.add_task("fetching mail", total=size, mails=0, of=mails)

            def show(fetched: int, fetched_bytes: int) -> None:
                mails = progress.tasks[task].fields["mails"] + fetched
                progress.update(task, advance=fetched_bytes, mails=mails)

            yield show

    def _progress(self, *columns: ProgressColumn) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            *columns,
            console=self._console,
            transient=True,
            expand=True,
            disable=not self._console.is_terminal,
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
