"""Writing files by descriptor: new ones only, and every byte of what is to be in them."""

from __future__ import annotations

import os
from pathlib import Path


def created(path: Path | str, mode: int = 0o400, *, append: bool = False) -> int:
    """Make a file that is not there yet, and return a descriptor to write to; raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.open(path, flags | (os.O_APPEND if append else 0), mode)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, in several calls where one does not take it; raises OSError."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])
