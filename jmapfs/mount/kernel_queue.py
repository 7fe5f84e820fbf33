"""How many requests the kernel keeps going at once on one mount.

With its default of 12, parallel readers wait for each other and reads shrink to single pages.
Only root may change it, and not everywhere: where not, the mount is slower, nothing else.
See Documentation/filesystems/fuse.rst in the kernel's sources.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from jmapfs.control import Mount

_log = logging.getLogger(__name__)

_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_MAX_BACKGROUND: Final = 128
_CONGESTION_THRESHOLD: Final = 96


def widen(mount: Mount) -> None:
    """Let the kernel keep more requests going on that mount, if it lets us."""
    connection = _CONNECTIONS / mount.device.partition(":")[2]
    try:
        (connection / "max_background").write_text(f"{_MAX_BACKGROUND}\n")
        (connection / "congestion_threshold").write_text(f"{_CONGESTION_THRESHOLD}\n")
    except OSError as error:
        _log.info("the kernel's queue stays as it is: %s", error)
