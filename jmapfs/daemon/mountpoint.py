"""The mountpoint: checks before mounting, the kernel's limits for the mount, and unmounting."""

import contextlib
import logging
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Final

from jmapfs.control.mounts import DEAD_ERRNOS, Mount, mount_at, peer, require_mount
from jmapfs.control.socket_client import connect
from jmapfs.errors import BusyError, MountpointError, NotMountedError

_log = logging.getLogger(__name__)

_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_MAX_BACKGROUND: Final = 128
_CONGESTION_THRESHOLD: Final = 96
_UNMOUNT_SECONDS: Final = 30
_EXIT_SECONDS: Final = 30
_CONNECT_SECONDS: Final = 10


def raise_queue_limits(mount: Mount) -> None:
    """Raise the number of requests that the kernel sends to a mount at the same time.

    With the default of 12, parallel readers wait for each other and reads shrink to single pages.
    Only root may change the number, and not on every system. If it cannot be changed, the mount is
    only slower. See Documentation/filesystems/fuse.rst in the kernel's sources.
    """
    connection = _CONNECTIONS / mount.device.partition(":")[2]
    try:
        (connection / "max_background").write_text(f"{_MAX_BACKGROUND}\n")
        (connection / "congestion_threshold").write_text(f"{_CONGESTION_THRESHOLD}\n")
    except OSError as error:
        _log.info("the kernel's limits for requests stay as they are: %s", error)


def check_mountpoint(mountpoint: Path, cache_root: Path) -> None:
    """Check that `mountpoint`, a resolved path, can be mounted on.

    A dead mount of jmapfs at that path is accepted. Raises MountpointError if mounting there is
    impossible; the message says why.
    """
    if is_dead_mount(mountpoint):
        return
    try:
        if not mountpoint.is_dir():
            what = "is not a directory" if mountpoint.exists() else "does not exist"
            raise MountpointError(f"{mountpoint}: the mountpoint {what}; make one with mkdir")
        if _ours_at(mountpoint):
            raise MountpointError(f"{mountpoint}: jmapfs is mounted there already")
        if any(mountpoint.iterdir()):
            raise MountpointError(f"{mountpoint}: the mountpoint is not empty")
        actual, cache = mountpoint.resolve(), cache_root.resolve()
    except OSError as error:
        raise MountpointError(f"{mountpoint}: {error.strerror}") from error
    if actual.is_relative_to(cache) or cache.is_relative_to(actual):
        raise MountpointError(
            f"{mountpoint}: the mountpoint and the cache ({cache_root}) must not contain each other"
        )


def detach(mountpoint: Path) -> None:
    """Unmount with fusermount3, which users may use for their own mounts.

    Raises:
        BusyError: files in it are open.
        MountpointError: it cannot be unmounted for another reason.
    """
    program = shutil.which("fusermount3")
    if program is None:
        raise MountpointError("fusermount3 is missing: install the package fuse3")
    try:
        result = subprocess.run(
            [program, "-u", "--", mountpoint],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_UNMOUNT_SECONDS,
            check=False,
            # It needs nothing else, and must not inherit a secret.
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise MountpointError(f"{mountpoint}: fusermount3 does not end") from None
    if result.returncode == 0:
        return
    message = result.stderr.strip() or f"fusermount3 ended with {result.returncode}"
    if "busy" in message.casefold():
        raise BusyError(
            f"{mountpoint}: files in it are open, or it is the working directory of a process"
        )
    raise MountpointError(f"{mountpoint}: {message}")


def is_dead_mount(mountpoint: Path) -> bool:
    """Return whether a dead mount of jmapfs is there.

    Raises MountpointError if a dead mount of another program is there.
    """
    try:
        # stat is not used, because the kernel answers stat from its cache.
        os.statvfs(mountpoint)
    except OSError as error:
        if error.errno not in DEAD_ERRNOS:
            return False
        if not _ours_at(mountpoint):
            raise MountpointError(
                f"{mountpoint}: a dead mount that is not ours is in the way"
            ) from error
        return True
    return False


def _ours_at(mountpoint: Path) -> bool:
    mount = mount_at(mountpoint)
    return mount is not None and mount.ours


def unmount(mountpoint: Path) -> None:
    """Unmount what jmapfs mounted at `mountpoint`, a resolved path; wait for its daemon to end.

    Raises:
        NotMountedError: no jmapfs mount is there.
        BusyError: files in it are open, or the daemon does not end.
        MountpointError: it cannot be unmounted for another reason.
    """
    mount = require_mount(mountpoint)
    with contextlib.ExitStack() as stack:
        daemon = None
        # A daemon that has died does not listen. Its mount is unmounted anyway.
        with contextlib.suppress(NotMountedError, OSError):
            with connect(mount, _CONNECT_SECONDS) as connection:
                pid = peer(connection).pid
            daemon = os.pidfd_open(pid)
            stack.callback(os.close, daemon)
        detach(mountpoint)
        if daemon is not None and not select.select([daemon], [], [], _EXIT_SECONDS)[0]:
            raise BusyError(
                f"{mountpoint}: unmounted, but its daemon (process {pid}) has not ended"
            )
