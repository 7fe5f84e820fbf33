"""Where things are kept: index and blobs of an account, sockets of running mounts, logs."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import platformdirs

from jmapfs.errors import StorageError
from jmapfs.jmap import BasicCredentials
from jmapfs.mount.request import AccountSource
from jmapfs.names import key, safe_text


def default_cache_root() -> Path:
    """Return where caches go: `$XDG_CACHE_HOME/jmapfs`."""
    return platformdirs.user_cache_path("jmapfs")


def account_directory(cache_root: Path, source: AccountSource) -> Path:
    """Return the directory of one account's index and blobs.

    It is named after what the user asked for, and so is found without asking the server.
    """
    credentials = source.credentials
    user = credentials.username if isinstance(credentials, BasicCredentials) else ""
    identity = "\0".join((source.location, user, source.account or ""))
    name = safe_text(source.location.partition("://")[2] or source.location, limit=40)
    return cache_root / f"{name}_{key(identity)}"


def log_path(mountpoint: Path) -> Path:
    """Return the log file of the daemon of a mountpoint: `$XDG_STATE_HOME/jmapfs/log/…`."""
    return platformdirs.user_log_path("jmapfs") / f"{_stem(mountpoint)}.log"


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
    return f"{_stem(mountpoint)}.sock"


def _stem(mountpoint: Path) -> str:
    name = safe_text(mountpoint.name, limit=40) or "root"
    return f"{name}_{key(os.fsencode(mountpoint).hex())}"
