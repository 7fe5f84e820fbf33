"""How much of the file system the cache leaves to others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MOST_RESERVED_BYTES: Final = 1024**3
_RESERVED_PART: Final = 20


class FreeSpace:
    """The free space of the file system that holds `directory`.

    `reserve_bytes` is what stays free; None means 1 GiB or 5 % of the file system, whichever is
    smaller.
    """

    def __init__(self, directory: Path, reserve_bytes: int | None = None) -> None:
        self._directory = directory
        self._reserve_bytes = reserve_bytes

    def shortage(self, wanted_bytes: int) -> int:
        """Return how many bytes are missing for `wanted_bytes` more; 0 if there is room.

        Raises:
            OSError: the file system does not say.
        """
        try:
            state = os.statvfs(self._directory)
        except FileNotFoundError:
            # Not made yet, or deleted: whoever makes it finds out.
            return 0
        reserve = self._reserve_bytes
        if reserve is None:
            reserve = min(_MOST_RESERVED_BYTES, state.f_blocks * state.f_frsize // _RESERVED_PART)
        return max(0, wanted_bytes + reserve - state.f_bavail * state.f_frsize)
