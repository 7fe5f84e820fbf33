"""The log of a command: each warning and error in it is a line for the user on stderr.

Records that repeat what the output of the command says (`errors.IN_OUTPUT`) are not shown, nor are
those of level INFO. The daemon of a mount has a log of its own, which contains all of them
(`daemon.startup`).
"""

import logging

from jmapfs.cli.output import notice
from jmapfs.errors import IN_OUTPUT
from jmapfs.text import LogFormatter


class _LineHandler(logging.Handler):
    """Prints records as lines; also each line of a traceback, which is the trace of a bug."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "error" if record.levelno >= logging.ERROR else "warning"
        try:
            for line in self.format(record).splitlines():
                notice(f"{kind}: {line}")
        except Exception:  # noqa: BLE001 - as in every handler of `logging`
            self.handleError(record)


_handler = _LineHandler(logging.WARNING)
_handler.setFormatter(LogFormatter())
_handler.addFilter(lambda record: not IN_OUTPUT.items() <= vars(record).items())


def show_warnings() -> None:
    """Show warnings from now on, those of libraries too."""
    logging.getLogger().addHandler(_handler)
    logging.captureWarnings(capture=True)


def show_errors_only() -> None:
    """Show errors, but no warnings (`--quiet`)."""
    _handler.setLevel(logging.ERROR)
