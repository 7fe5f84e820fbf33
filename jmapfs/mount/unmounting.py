"""`jmapfs umount`: the mount goes, then its daemon, and only then the command comes back."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path
from typing import Final

from jmapfs.control import ask, require_mount, socket_directory, socket_name
from jmapfs.errors import BusyError, JmapfsError
from jmapfs.mount.mountpoint import detach

_EXIT_SECONDS: Final = 30


def unmount(mountpoint: Path) -> None:
    """Unmount what jmapfs mounted at `mountpoint`, a resolved path; wait for its daemon to end.

    Raises:
        NotMountedError: nothing of ours is mounted there.
        BusyError: files in it are open, or the daemon does not end.
        MountpointError: it cannot be unmounted for another reason.
    """
    require_mount(mountpoint)
    daemon = None
    with contextlib.suppress(JmapfsError):
        # A daemon that died says nothing; its mount goes all the same.
        status = ask(socket_directory(), socket_name(mountpoint), "status")
        with contextlib.suppress(ProcessLookupError):
            daemon = os.pidfd_open(status["pid"])
    try:
        detach(mountpoint)
        if daemon is not None and not select.select([daemon], [], [], _EXIT_SECONDS)[0]:
            raise BusyError(
                f"{mountpoint}: unmounted, but its daemon (process {status['pid']}) has not ended"
            )
    finally:
        if daemon is not None:
            os.close(daemon)
