"""Other users of this machine, who mount and run commands like anybody. Only root can be them."""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.mounts import Home

# Debian has these users, and nobody logs in as them.
ALICE = "games"
BOB = "man"

_FUSE = Path("/dev/fuse")


def missing() -> str | None:
    """Return why tests cannot run commands as other users; None if they can."""
    if os.geteuid() != 0:
        return "only root can run commands as other users"
    if shutil.which("setpriv") is None:
        return "setpriv is missing"
    for name in (ALICE, BOB):
        try:
            pwd.getpwnam(name)
        except KeyError:
            return f"there is no user {name}"
    return None


def as_user(name: str) -> list[str]:
    """Return the beginning of a command that runs as a user.

    The command has no privileges. Only if the program is in a place that is closed to other users,
    such as the home of root, the command may read all files.
    """
    user = pwd.getpwnam(name)
    command = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    if _can_run(tuple(command)):
        return command
    return [*command, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@functools.cache
def _can_run(prefix: tuple[str, ...]) -> bool:
    probe = [*prefix, sys.executable, "-c", "import jmapfs.cli.main, tests, msgspec, trio"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


@dataclass
class UserHome(Home):
    """The surroundings of another user, whose commands run as this user."""

    name: str = ALICE
    password: str = "secret"
    username: str = "alice@example.org"
    prefix: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        user = pwd.getpwnam(self.name)
        for path in (self.directory, *self.directory.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
        self.program = [*self.prefix, *as_user(self.name), sys.executable, "-m", "jmapfs"]
        self.variables = {"HOME": str(self.directory), **self.variables}

    def mountpoint(self) -> Path:
        """Return an empty directory of this user."""
        path = self.directory / "mnt"
        path.mkdir(exist_ok=True)
        user = pwd.getpwnam(self.name)
        os.chown(path, user.pw_uid, user.pw_gid)
        return path


@contextmanager
def user_home(name: str) -> Iterator[UserHome]:
    """Give a user a home, which is removed at the end with what is mounted in it."""
    if stat.S_IMODE(_FUSE.stat().st_mode) & 0o006 != 0o006:
        # udev gives everybody access, but a container may have the device of the kernel.
        _FUSE.chmod(0o666)
    # The directories of pytest are closed to other users.
    directory = Path(tempfile.mkdtemp(prefix="jmapfs-test-"))
    directory.chmod(0o755)
    home = UserHome(directory, name=name)
    try:
        yield home
    finally:
        subprocess.run(
            ["fusermount3", "-u", "-z", str(home.directory / "mnt")],
            check=False,
            capture_output=True,
        )
        shutil.rmtree(directory)
