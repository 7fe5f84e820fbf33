"""The progress of `jmapfs snapshot`: a bar on a terminal, lines otherwise, or nothing."""

from __future__ import annotations

import contextlib
import io

import pytest
from rich.console import Console

from jmapfs.cli.progress import SnapshotDisplay


class Shown:
    """What is shown for a snapshot of 2,000 mails, with a notice: on a screen, and on stderr."""

    def __init__(self, *, terminal: bool, quiet: bool = False) -> None:
        screen, stderr = io.StringIO(), io.StringIO()
        console = Console(file=screen, force_terminal=terminal, width=100, highlight=False)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(stderr):
            patch.setattr("jmapfs.cli.progress.console", console)
            with SnapshotDisplay(quiet=quiet) as display:
                display.waiting("mail.example.org asks to wait 30 s")
                display.listed(500, 2000)
                display.listed(2000, 2000)
                display.notice("something to know")
                for mails in range(0, 2001, 100):
                    display.copied(mails, 2000, mails * 1024)
                display.syncing()
        self.screen, self.stderr = screen.getvalue(), stderr.getvalue()


def test_a_bar_on_a_terminal() -> None:
    output = Shown(terminal=True).screen
    for text in ("listing", "copying", "2,000/2,000 mails", "2.0 MiB", "writing to the disk"):
        assert text in output
    assert "jmapfs: something to know" in output
    assert "mail.example.org asks to wait 30 s" in output


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(terminal=False)
    assert (shown.screen, shown.stderr) == ("", "jmapfs: something to know\n")
    monkeypatch.setattr("jmapfs.cli.progress._LINE_SECONDS", 0)
    shown = Shown(terminal=False)
    assert shown.screen == ""
    lines = shown.stderr.splitlines()
    assert "jmapfs: listing: 500 of 2,000 mails" in lines
    assert "jmapfs: copying: 1,000 of 2,000 mails, 1000.0 KiB" in lines
    assert not any("\x1b" in line for line in lines)


def test_nothing_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmapfs.cli.progress._LINE_SECONDS", 0)
    for terminal in (False, True):
        shown = Shown(terminal=terminal, quiet=True)
        assert (shown.screen, shown.stderr) == ("", "")
