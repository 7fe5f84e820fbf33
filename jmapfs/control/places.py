"""Where a mount is, and where the control socket of its daemon is."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from jmapfs.errors import StorageError
from jmapfs.names import key, safe_text


def resolve(mountpoint: Path) -> Path:
    """Return the absolute path of a mountpoint, without asking what is mounted on it.

    A dead mount answers every question about itself with an error, so only its parent is resolved.
    """
    absolute = Path(os.path.abspath(mountpoint))  # noqa: PTH100 - Path has no lexical equal
    return absolute.parent.resolve() / absolute.name if absolute.name else absolute


def socket_directory() -> Path:
    """Return the directory of the control sockets, `$XDG_RUNTIME_DIR/jmapfs`; it is private.

    Raises:
        StorageError: it cannot be made, or it belongs to somebody else.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    # A service of the system, or a container, has neither.
    directory = (
        Path(runtime) / "jmapfs"
        if Path(runtime).is_dir()
        else Path(tempfile.gettempdir()) / f"jmapfs-{os.getuid()}"
    )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise StorageError(f"cannot make {directory}: {error.strerror}") from error
    # Without XDG_RUNTIME_DIR it may be in a directory where everybody writes.
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise StorageError(f"{directory} belongs to somebody else: set XDG_RUNTIME_DIR")
    if status.st_mode & 0o077:
        directory.chmod(0o700)
    return directory


def socket_name(mountpoint: Path) -> str:
    """Return the name of the control socket of a mountpoint, within `socket_directory`."""
    return f"{file_stem(mountpoint)}.sock"


def file_stem(mountpoint: Path) -> str:
    """Return what the files that belong to a mountpoint are called, without an ending."""
    name = safe_text(mountpoint.name, limit=40) or "root"
    return f"{name}_{key(os.fsencode(mountpoint).hex())}"
