"""The only module that writes to terminals: results to stdout, messages to stderr.

Everything is printed as lines, and each line is escaped here, once. The callers pass plain text.
Lines of JSON keep their meaning, because their escapes are those of JSON.

If stdout cannot be written, OutputError ends the command. If stderr cannot be written, nobody can
be told, and the command goes on. Each line is flushed, so that Python has nothing to write when it
exits.
"""

import errno
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TextIO

import msgspec

from jmapfs.errors import OutputError, ReaderGoneError
from jmapfs.text import cell_width, escaped, escaped_json


def print_line(text: str) -> None:
    """Print one line of a result."""
    print_lines([text])


def print_lines(lines: Iterable[str]) -> None:
    """Print the lines of a result. They are flushed only at the end: there may be a million."""
    # A character that the encoding of the terminal does not have is escaped too.
    encoding = sys.stdout.encoding
    for line in lines:
        _write(f"{escaped(line)}\n".encode(encoding, "backslashreplace"))
    _flush()


def print_json(value: object) -> None:
    """Print an indented JSON document of structs, or of builtins that contain structs.

    Undecodable bytes in file names become lone surrogates, as in Python strings.
    """
    document = json.dumps(msgspec.to_builtins(value), ensure_ascii=False, indent=2)
    print_json_lines(map(escaped_json, document.split("\n")))


def print_json_lines(lines: Iterable[str]) -> None:
    """Print lines of JSON from `escaped_json`. They are in UTF-8 everywhere (RFC 8259 §8.1)."""
    for line in lines:
        _write(f"{line}\n".encode())
    _flush()


def print_table(rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> None:
    """Print a line for each row; see `columns`."""
    print_lines(columns(rows, numbers=numbers))


def write_now(data: bytes) -> None:
    """Write encoded lines to stdout without a buffer or a lock: the thread may be abandoned."""
    descriptor = sys.stdout.fileno()
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        raise _output_error(error) from None


def stdout_descriptor() -> int:
    """Return the descriptor of stdout."""
    return sys.stdout.fileno()


def notice(text: str) -> None:
    """Print a message for the user on stderr."""
    _write_message(f"jmapfs: {text}")


def show_waiting(text: str, seconds: float = 0.0) -> None:  # noqa: ARG001 - an `on_wait`
    """On a terminal, print that the server asks to wait."""
    if is_terminal():
        notice(text)


def print_usage(text: str) -> None:
    """Print the lines of a help text on stderr."""
    for line in text.splitlines():
        _write_message(line)


def show_bug(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Print a traceback as messages: the text of an exception may come from outside."""
    for line in "".join(traceback.format_exception(kind, error, trace)).splitlines():
        notice(line)


def show_bugs() -> None:
    """Print the tracebacks of this process with `show_bug` from now on."""

    def show_bug_of_thread(found: threading.ExceptHookArgs) -> None:
        if found.exc_type is not SystemExit:
            show_bug(found.exc_type, found.exc_value, found.exc_traceback)

    def show_bug_of_finalizer(found: "sys.UnraisableHookArgs") -> None:
        show_bug(found.exc_type, found.exc_value, found.exc_traceback)

    sys.excepthook = show_bug
    threading.excepthook = show_bug_of_thread
    sys.unraisablehook = show_bug_of_finalizer


def is_terminal() -> bool:
    """Return whether stderr is a terminal, on which progress is shown."""
    with suppress(OSError, ValueError):
        return sys.stderr.isatty()
    return False


class Screen:
    """The terminal, for progress bars, which have control sequences. Raises no error.

    The terminal may be gone: then its window was closed, and SIGHUP is about to arrive.
    """

    @property
    def encoding(self) -> str:
        """The encoding of stderr."""
        return sys.stderr.encoding

    def isatty(self) -> bool:
        """Return whether stderr is a terminal."""
        return is_terminal()

    def fileno(self) -> int:
        """Return the descriptor, by which the size of the terminal is found."""
        return sys.stderr.fileno()

    def write(self, text: str) -> int:
        """Write to stderr, without the progress bar that may have replaced it."""
        stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        _write_stderr(stream, text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` has flushed."""


def columns(rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> Iterator[str]:
    """Yield a line for each row. The columns with indices in `numbers` are aligned right.

    The lines are not cut at the width of a terminal.
    """
    shown = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(cell_width, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - cell_width(cell))
            cells.append(padding + cell if index in numbers else cell + padding)
        yield "  ".join(cells).rstrip()


def _write(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
    except OSError as error:
        raise _output_error(error) from None


def _flush() -> None:
    try:
        sys.stdout.buffer.flush()
    except OSError as error:
        raise _output_error(error) from None


def _output_error(error: OSError) -> OutputError:
    # What is in the buffer must not be written again when Python exits.
    _discard(sys.stdout)
    if error.errno == errno.EPIPE:
        return ReaderGoneError("nobody reads the standard output any more")
    return OutputError(f"the standard output: {error.strerror}")


def _write_message(text: str) -> None:
    # A progress bar replaces sys.stderr, so that lines are printed above it.
    _write_stderr(sys.stderr, f"{escaped(text)}\n")


def _write_stderr(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError:
        _discard(stream)


def _discard(stream: TextIO) -> None:
    """Send what is still written to a stream to /dev/null."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
