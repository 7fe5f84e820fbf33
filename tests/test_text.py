"""Text from outside is made safe to print, and stays readable."""

from __future__ import annotations

import logging

import pytest

from jmapfs.text import LogFormatter, cell_width, escaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]52;c;cm0=\x07", r"\x1b]52;c;cm0=\x07"),
        ("\x1b]8;;http://x\x1b\\link", "\\x1b]8;;http://x\\x1b\\link"),
        ("\x9b2J\x90\x85", r"\x9b2J\x90\x85"),
        ("a\nb\rc\td\x00\x7f", r"a\nb\rc\td\x00\x7f"),
        ("\u202etxt.exe\u2066\u200f\u061c", r"\u202etxt.exe\u2066\u200f\u061c"),
        ("\u2028\u2029\ufeff\u200b\u00ad", r"\u2028\u2029\ufeff\u200b\xad"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("\ue000\U000e0001", r"\ue000\U000e0001"),
    ],
)
def test_what_controls_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("Grüße ✉", "日本語", "العربية", "שלום עולם", "ไทย", "한국어", "e\u0301"),
        *("می\u200cخواهم", "क्\u200dष", "👨\u200d👩\u200d👧", "🏳️\u200d🌈", "a\u00a0b", "\u3000"),
        *("[/red][bold]", ":smile:", "C:\\x1b"),
    ],
)
def test_letters_of_every_script_stay(text: str) -> None:
    assert escaped(text) == text


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("日本", 4), ("e\u0301", 1), ("\uff21", 2), ("👍", 2)]
)
def test_the_width_in_columns(text: str, width: int) -> None:
    assert cell_width(text) == width


def test_a_record_cannot_add_a_line_to_the_log() -> None:
    """A log is read with programs such as cat(1) and grep(1)."""
    forged = "2026-11-27 12:00:00,000 INFO jmapfs: all is well"
    formatter = LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    with pytest.raises(ValueError, match="forged") as caught:
        int(f"\x1b[2J\n{forged}\r\u202e forged")
    record = logging.LogRecord(
        *("jmapfs.x", logging.ERROR, "x.py", 1, "%s\n", (f"\x1b[2J\n{forged}\r\u202e",)),
        (caught.type, ValueError(f"\x1b[2J\n{forged}\r\u202e"), caught.tb),
    )
    first, *rest = formatter.format(record).split("\n")
    assert first.endswith(rf" ERROR jmapfs.x: \x1b[2J\n{forged}\r\u202e")
    assert rest[0] == "  Traceback (most recent call last):"
    for line in rest:
        assert line.startswith("  ")
        assert escaped(line) == line
