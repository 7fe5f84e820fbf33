"""The mountpoint: checks before mounting, the kernel's limits for the mount, and unmounting."""

import contextlib
import ctypes
import fcntl
import logging
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from jmapfs.control.mounts import (
    DEAD_ERRNOS,
    Mount,
    kernel_answer,
    mount_at,
    mounts,
    peer,
    require_mount,
)
from jmapfs.control.socket_client import addresses_of_daemon, connect, is_dead
from jmapfs.errors import BusyError, MountpointError, NotMountedError
from jmapfs.locking import wait_for_lock

_log = logging.getLogger(__name__)

_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_MAX_BACKGROUND: Final = 128
_CONGESTION_THRESHOLD: Final = 96
_UNMOUNT_SECONDS: Final = 30
_EXIT_SECONDS: Final = 30
_ANSWER_SECONDS: Final = 10
_MNT_FORCE: Final = 1
_CONNECT_SECONDS: Final = 10
_CLEARING_SECONDS: Final = 40
_PAUSE_SECONDS: Final = 0.05
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


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
    # Before the directory is touched: a daemon that hangs does not answer.
    if _is_ours(mountpoint):
        raise MountpointError(f"{mountpoint}: jmapfs is mounted there already")
    try:
        if not mountpoint.is_dir():
            what = "is not a directory" if mountpoint.exists() else "does not exist"
            raise MountpointError(f"{mountpoint}: the mountpoint {what}; make one with mkdir")
        if any(mountpoint.iterdir()):
            raise MountpointError(f"{mountpoint}: the mountpoint is not empty")
        actual, cache = mountpoint.resolve(), cache_root.resolve()
    except OSError as error:
        raise MountpointError(f"{mountpoint}: {error.strerror}") from error
    if actual.is_relative_to(cache) or cache.is_relative_to(actual):
        raise MountpointError(
            f"{mountpoint}: the mountpoint and the cache ({cache_root}) must not contain each other"
        )


class MountpointLock(contextlib.AbstractContextManager["MountpointLock"]):
    """The right to mount on a directory: a lock (flock) of the directory itself.

    It is the same lock for each path that leads to the directory, for each user, and in each mount
    namespace, and it leaves no file behind. Some network file systems cannot lock a directory.
    There, `require_only_mount` is the only protection.
    """

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._descriptor = -1

    def __exit__(self, *_: object) -> None:
        self.release()

    def hold(self) -> None:
        """Hold the lock of the directory that is at the path now.

        A dead mount hides its directory, so nothing is locked then: call this again when the dead
        mount is gone. A directory that was replaced since the last call is locked instead.

        Raises BusyError if another process is mounting there.
        """
        try:
            descriptor = os.open(self._mountpoint, _OPEN_DIRECTORY)
        except OSError as error:
            # `check_mountpoint` tells what is wrong.
            _log.debug("%s cannot be locked: %s", self._mountpoint, error)
            return
        held = self._descriptor
        if held >= 0 and os.path.samestat(os.fstat(held), os.fstat(descriptor)):
            os.close(descriptor)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = _lock_holder(descriptor)
            os.close(descriptor)
            raise BusyError(
                f"{self._mountpoint}: {who} is mounting there: wait for it, or end it"
            ) from None
        except OSError as error:
            _log.warning("%s cannot be locked: %s", self._mountpoint, error)
        self.release()
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back, when the kernel's table of mounts has the mount."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _lock_holder(descriptor: int) -> str:
    """Return which process has locked an open directory; see /proc/locks in proc(5)."""
    pattern = rf"FLOCK +ADVISORY +WRITE (\d+) [0-9a-f]+:[0-9a-f]+:{os.fstat(descriptor).st_ino} "
    with contextlib.suppress(OSError):
        # Different file systems have directories with the same number.
        holders = set(re.findall(pattern, Path("/proc/locks").read_text())) - {"0"}
        if len(holders) == 1:
            return f"process {holders.pop()}"
    return "another process"


def require_only_mount(mount: Mount) -> None:
    """Raise MountpointError if jmapfs has mounted something else at the place of a new mount."""
    if any(one.device != mount.device for one in _ours_at(mount.mountpoint)):
        raise MountpointError(f"{mount.mountpoint}: jmapfs is mounted there already")


def clear_dead_mount(mountpoint: Path) -> bool:
    """Unmount dead mounts of jmapfs at a mountpoint; return whether there was one.

    Only one process at a time does this, so none unmounts the new mount of another process.
    Raises BusyError and MountpointError.
    """
    cleared = False
    while is_dead_mount(mountpoint):
        with contextlib.ExitStack() as stack:
            # The directory itself is hidden by the dead mount.
            with contextlib.suppress(PermissionError):
                parent = os.open(mountpoint.parent, _OPEN_DIRECTORY)
                stack.callback(os.close, parent)
                try:
                    wait_for_lock(parent, _CLEARING_SECONDS)
                except TimeoutError:
                    raise BusyError(
                        f"{mountpoint.parent}: {_lock_holder(parent)} has locked this directory,"
                        " so the dead mount in it cannot be cleared"
                    ) from None
                except OSError as error:
                    _log.warning("%s cannot be locked: %s", mountpoint.parent, error)
            if is_dead_mount(mountpoint):
                detach(mountpoint)
                cleared = True
    return cleared


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

    Raises MountpointError if a dead mount of another program is there, or one that does not answer.
    """
    answer = kernel_answer(mountpoint, _ANSWER_SECONDS)
    if answer is None:
        what = "jmapfs" if _is_ours(mountpoint) else "a file system"
        raise MountpointError(
            f"{mountpoint}: {what} is mounted there already, and does not answer: unmount it"
        )
    if answer not in DEAD_ERRNOS:
        return False
    if not _is_ours(mountpoint):
        raise MountpointError(f"{mountpoint}: a dead mount that is not ours is in the way")
    return True


def _is_ours(mountpoint: Path) -> bool:
    mount = mount_at(mountpoint)
    return mount is not None and mount.ours


def _ours_at(mountpoint: Path) -> list[Mount]:
    """Return the mounts of jmapfs at a resolved path; the topmost is the last one."""
    return [one for one in mounts() if one.mountpoint == mountpoint and one.ours]


def unmount(mountpoint: Path) -> None:
    """Unmount what jmapfs mounted at `mountpoint`, a resolved path; wait for its daemon to end.

    Raises:
        NotMountedError: no jmapfs mount is there.
        BusyError: files in it are open, or it is unmounted, but something is left: its daemon does
            not end or cannot be found, or another mount of jmapfs is below it.
        MountpointError: it cannot be unmounted for another reason.
    """
    mount = require_mount(mountpoint)
    below = [one for one in _ours_at(mountpoint) if one.device != mount.device]
    with contextlib.ExitStack() as stack:
        pid = daemon = 0
        obstacle = ""
        addresses: set[bytes] = set()
        try:
            with connect(mount, _CONNECT_SECONDS) as connection:
                pid = peer(connection).pid
            daemon = os.pidfd_open(pid)
            stack.callback(os.close, daemon)
            if _was_killed(pid):
                _abort(mount)
                select.select([daemon], [], [], _ANSWER_SECONDS)
        except ProcessLookupError:
            pass
        except (NotMountedError, OSError) as error:
            # A daemon that has died does not listen. Its mount is unmounted anyway.
            addresses = addresses_of_daemon(mount)
            if addresses or is_dead(mount) is False:
                obstacle = str(error)
        detach(mountpoint)
        if daemon:
            if not select.select([daemon], [], [], _EXIT_SECONDS)[0]:
                raise BusyError(
                    f"{mountpoint}: unmounted, but its daemon (process {pid}) has not ended: end"
                    f" it with `kill -9 {pid}` if it hangs"
                )
        elif obstacle and not (addresses and _have_ended(mount, addresses)):
            raise BusyError(
                f"{mountpoint}: unmounted, but perhaps its daemon still runs: {obstacle}"
            )
    if below:
        raise BusyError(
            f"{mountpoint}: one mount is unmounted, but there was another one below it: run the"
            " command again"
        )


def _was_killed(pid: int) -> bool:
    """Return whether the main thread of a process has ended, although others have not."""
    with contextlib.suppress(OSError):
        # The name of the program, in parentheses, can contain anything.
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        return state in {"Z", "X"}
    return False


def _abort(mount: Mount) -> None:
    """Make the kernel end the connection of a daemon that was killed, but does not end.

    A notification to the kernel can wait for a request that only the daemon can answer. If the
    daemon is killed at this moment, its thread stays, and everybody in the mount waits for ever.
    """
    try:
        (_CONNECTIONS / mount.device.partition(":")[2] / "abort").write_text("1\n")
    except OSError as error:
        _log.info("the connection cannot be aborted by its owner: %s", error)
        # As `umount -f`, for root only. The kernel ends the connection even if the mount is in use.
        ctypes.CDLL(None).umount2(os.fsencode(mount.mountpoint), _MNT_FORCE)


def _have_ended(mount: Mount, addresses: set[bytes]) -> bool:
    """Wait until no daemon listens at these addresses of a mount; return whether that happened."""
    deadline = time.monotonic() + _EXIT_SECONDS
    while addresses & addresses_of_daemon(mount):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_SECONDS)
    return True
