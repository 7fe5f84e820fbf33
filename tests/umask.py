"""The umask of this process, for commands that a test runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def process_umask(mask: int) -> Iterator[None]:
    """Set the umask in the context. Commands that begin in it have this umask too."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
