"""Text from outside, made safe for terminals and logs.

File names, keywords, account names and the words of servers can contain control characters, line
breaks and characters that reverse the direction of writing. `escaped` makes them visible. Only the
modules that print or log call it: `cli.output` and the formatter below.
"""

import json
import logging
import unicodedata
from types import TracebackType
from typing import Final

# Persian, Hindi, and emoji that consist of several characters need these invisible joiners.
_JOINERS: Final = "\u200c\u200d"


def is_shown(char: str) -> bool:
    """Return whether a character is printed as it is: letters, marks, signs, emoji and spaces.

    Control and format characters, line and paragraph separators, surrogates, private and unassigned
    characters are not.
    """
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


def escaped(text: str) -> str:
    r"""Return text with an escape such as `\x1b` for each character that must not be printed.

    Line breaks and undecodable bytes of file names are escaped as well.
    """
    if text.isprintable():
        return text
    return "".join(
        char if is_shown(char) else char.encode("unicode_escape").decode() for char in text
    )


def escaped_json(document: str) -> str:
    r"""Return a line of JSON, with `\u009b` for a character that must not be printed."""
    if document.isprintable():
        return document
    return "".join(char if is_shown(char) else json.dumps(char)[1:-1] for char in document)


def cell_width(text: str) -> int:
    """Return how many columns of a terminal a printable text takes."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


_ExceptionInfo = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


class LogFormatter(logging.Formatter):
    """Formats a record as one line. The lines of a traceback follow, and are indented.

    So a text from outside cannot add a line that looks like a record of its own.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line of the record."""
        return escaped(super().formatMessage(record).rstrip())

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802 - logging's name
        """Return the lines of a traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's name
        """Return the lines of a stack."""
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"  {escaped(line)}" for line in text.splitlines())
