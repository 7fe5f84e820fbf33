"""The progress of `jmapfs snapshot`: a bar on a terminal, lines otherwise, or nothing."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jmapfs.cli.snapshot_command import SnapshotDisplay


def shown(*, terminal: bool, quiet: bool = False) -> str:
    """Return the output for a snapshot of 2,000 mails, with a notice."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100, highlight=False)
    with SnapshotDisplay(console, quiet=quiet) as display:
        display.waiting("mail.example.org asks to wait 30 s")
        display.listed(500, 2000)
        display.listed(2000, 2000)
        display.notice("something to know")
        for mails in range(0, 2001, 100):
            display.copied(mails, 2000, mails * 1024)
        display.syncing()
    return output.getvalue()


def test_a_bar_on_a_terminal() -> None:
    output = shown(terminal=True)
    for text in ("listing", "copying", "2,000/2,000 mails", "2.0 MiB", "writing to the disk"):
        assert text in output
    assert "jmapfs: something to know" in output
    assert "mail.example.org asks to wait 30 s" in output


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(terminal=False) == "jmapfs: something to know\n"
    monkeypatch.setattr("jmapfs.cli.snapshot_command._LINE_SECONDS", 0)
    lines = shown(terminal=False).splitlines()
    assert "jmapfs: listing: 500 of 2,000 mails" in lines
    assert "jmapfs: copying: 1,000 of 2,000 mails, 1000.0 KiB" in lines
    assert not any("\x1b" in line for line in lines)


def test_nothing_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmapfs.cli.snapshot_command._LINE_SECONDS", 0)
    assert shown(terminal=False, quiet=True) == shown(terminal=True, quiet=True) == ""
