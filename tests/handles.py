"""File handles: name_to_handle_at(2) and open_by_handle_at(2), which Python does not have."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_AT_FDCWD = -100
_LARGEST = 128

_libc = ctypes.CDLL(None, use_errno=True)


class Handle(ctypes.Structure):
    """`struct file_handle`."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _LARGEST),
    )


def handle_of(path: Path) -> Handle:
    """Return the handle of a file or directory; raises OSError."""
    handle = Handle(handle_bytes=_LARGEST)
    mount_id = ctypes.c_int()
    arguments = (_AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0)
    _checked(_libc.name_to_handle_at(*arguments))
    return handle


def open_handle(directory: Path, handle: Handle) -> int:
    """Open a handle in the file system of a directory; only root may. Raises OSError."""
    within = os.open(directory, os.O_RDONLY)
    try:
        return _checked(_libc.open_by_handle_at(within, ctypes.byref(handle), os.O_RDONLY))
    finally:
        os.close(within)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
