"""Where the log of a mount's daemon is kept."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from jmapfs.control import file_stem


def log_path(mountpoint: Path) -> Path:
    """Return the log file of the daemon of a mountpoint: `$XDG_STATE_HOME/jmapfs/log/…`."""
    return platformdirs.user_log_path("jmapfs") / f"{file_stem(mountpoint)}.log"
