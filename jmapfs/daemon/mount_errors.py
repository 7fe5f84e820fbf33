"""Why libfuse could not mount: what it prints, and what the user can do.

libfuse and fusermount3 give the reason only on stderr, which is /dev/null in a daemon. Their texts
are those of libfuse 3 (lib/mount.c and util/fusermount.c). They are not translated.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from jmapfs.control.mounts import user_name

_DEVICE: Final = Path("/dev/fuse")
_PROGRAM: Final = "fusermount3"
_CAP_SYS_ADMIN: Final = 1 << 21

_IN_A_CONTAINER: Final = "start the container with `--device /dev/fuse --cap-add SYS_ADMIN`"


class Printed:
    """The lines that were printed to stderr. They are complete at the end of `captured_stderr`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @property
    def reason(self) -> str:
        """The last line of libfuse or fusermount3, or an empty text."""
        found = [line for line in self.lines if line.startswith(("fuse:", "fusermount"))]
        return found[-1].partition(": ")[2] if found else ""


@contextlib.contextmanager
def captured_stderr() -> Iterator[Printed]:
    """Keep what this process and its children print to stderr.

    In the foreground, other threads log to stderr as well. So the caller logs all lines again.
    """
    printed = Printed()
    terminal = os.dup(2)
    capture = os.memfd_create("stderr")
    try:
        os.dup2(capture, 2)
        try:
            yield printed
        finally:
            os.dup2(terminal, 2)
            size = os.fstat(capture).st_size
            text = os.pread(capture, size, 0).decode(errors="replace")
            printed.lines += filter(None, map(str.strip, text.splitlines()))
    finally:
        os.close(terminal)
        os.close(capture)


def advice(reason: str, mountpoint: Path) -> str:
    """Return what to do about a reason that libfuse gave, or an empty text if it is not known."""
    return next((about(mountpoint) for text, about in _ADVICE.items() if text in reason), "")


def _about_the_program(_mountpoint: Path) -> str:
    if shutil.which(_PROGRAM) is None:
        return f"install the package fuse3, which contains {_PROGRAM}"
    return f"make {_PROGRAM} executable for this user, or install the package fuse3 again"


def _about_the_missing_device(_mountpoint: Path) -> str:
    return f"{_DEVICE} is missing: run `modprobe fuse` as root; in a container, {_IN_A_CONTAINER}"


def _about_access_to_the_device(_mountpoint: Path) -> str:
    container = f"in a container, {_IN_A_CONTAINER}"
    if os.access(_DEVICE, os.R_OK | os.W_OK):
        # The mode allows it. The device cgroup of a container does not.
        return container
    return f"run `chmod 666 {_DEVICE}` as root; {container}"


def _about_the_owner(mountpoint: Path) -> str:
    user = user_name(os.geteuid())
    return f"use a directory of your own, or run `chown {user} {mountpoint}` as root"


def _about_other_users(_mountpoint: Path) -> str:
    return (
        "allow_other and allow_root need the line `user_allow_other` in /etc/fuse.conf, unless root"
        " mounts"
    )


def _about_privileges(_mountpoint: Path) -> str:
    process = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    program = shutil.which(_PROGRAM)
    if os.geteuid() != 0 and program is not None:
        status = Path(program).stat()
        if status.st_uid != 0 or not status.st_mode & stat.S_ISUID:
            return (
                f"{program} is not setuid root: run `chown root {program}; chmod u+s {program}`"
                " as root"
            )
        if os.statvfs(program).f_flag & os.ST_NOSUID:
            return f"{program} is on a file system that is mounted with nosuid"
        if process["NoNewPrivs"].strip() != "0":
            return (
                f"this process cannot gain privileges with {program}: run it without"
                " NoNewPrivileges=yes or no-new-privileges"
            )
    permitted = int(process["CapBnd" if os.geteuid() else "CapEff"], 16)
    if not permitted & _CAP_SYS_ADMIN:
        return f"the capability CAP_SYS_ADMIN is missing: in a container, {_IN_A_CONTAINER}"
    return (
        f"the kernel does not allow it: in a container, {_IN_A_CONTAINER}, and if needed with"
        " `--security-opt apparmor=unconfined`"
    )


# The words of libfuse that tell a cause, and what to do about it.
_ADVICE: Final[dict[str, Callable[[Path], str]]] = {
    f"exec {_PROGRAM}": _about_the_program,
    "device not found": _about_the_missing_device,
    f"open {_DEVICE}": _about_access_to_the_device,
    "not owned by user": _about_the_owner,
    "no write access to mountpoint": _about_the_owner,
    "user_allow_other": _about_other_users,
    "mount failed: Operation not permitted": _about_privileges,
}
