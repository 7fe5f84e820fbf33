"""Where a daemon's log goes: a file of its own in the background, stderr in the foreground."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path
from typing import Final

from jmapfs.errors import StorageError

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_BYTES: Final = 4 * 1024 * 1024
_KEPT: Final = 2


def log_to_stderr(*, verbose: bool) -> None:
    """Log to stderr, from now on."""
    _begin(logging.StreamHandler(), verbose=verbose)


def log_to_file(path: Path, *, verbose: bool) -> None:
    """Log to a file that does not grow for ever, from now on.

    Raises:
        StorageError: the file cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=_BYTES, backupCount=_KEPT)
    except OSError as error:
        raise StorageError(f"cannot write the log {path}: {error.strerror}") from error
    _begin(handler, verbose=verbose)


def _begin(handler: logging.Handler, *, verbose: bool) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger = logging.getLogger("jmapfs")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    logging.captureWarnings(capture=True)
    logging.getLogger("py.warnings").addHandler(handler)
