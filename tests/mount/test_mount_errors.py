"""A mount that the system does not allow: the reason of libfuse, and what to do about it.

Each test makes the real fault, in a mount namespace of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import users
from tests.mounts import Home, Result
from tests.namespaces import new_namespace
from tests.server import ServerProcess
from tests.users import ALICE, UserHome

pytestmark = pytest.mark.mount

# As in a container with the capabilities that containers usually have.
WITHOUT_CAPABILITY = 'set -- setpriv --bounding-set=-sys_admin "$@"'

FUSERMOUNT = shutil.which("fusermount3") or "/usr/bin/fusermount3"


@pytest.fixture(scope="module", autouse=True)
def other_users() -> None:
    if reason := users.missing():
        pytest.skip(reason)


def failed_mount(
    home: Home, server: ServerProcess, mountpoint: Path, fault: str, *options: str
) -> Result:
    """Try to mount after the shell commands of `fault`; return what the user sees.

    `$1` is a directory where the fault may keep files.
    """
    scratch = home.directory / "scratch"
    scratch.mkdir(exist_ok=True)
    before = home.program
    script = f'set -e; scratch="$1"; shift; {fault}\nexec "$@"'
    alone = new_namespace(keep=home.directory)
    home.program = [*alone, "bash", "-c", script, "bash", str(scratch), *before]
    try:
        result = home.run("mount", *options, server.url, mountpoint)
    finally:
        home.program = before
    assert result.exit_code == 7, result
    assert len(result.stderr.splitlines()) == 1, result
    assert result.stderr.startswith(f"jmapfs: {mountpoint}: cannot mount: ")
    assert "Traceback" not in home.log()
    assert not mountpoint.is_mount()
    return result


def test_fusermount3_is_missing(alice: UserHome, server: ServerProcess) -> None:
    fault = """
    mount -t tmpfs none "$scratch"; mkdir "$scratch"/{upper,work}; programs="$(dirname FUSERMOUNT)"
    mount -t overlay none -o "lowerdir=$programs,upperdir=$scratch/upper,workdir=$scratch/work" \
        "$programs"
    rm FUSERMOUNT
    """.replace("FUSERMOUNT", FUSERMOUNT)
    result = failed_mount(alice, server, alice.mountpoint(), fault)
    assert "exec fusermount3" in result.stderr
    assert "install the package fuse3" in result.stderr
    assert "exec fusermount3" in alice.log()


def test_fusermount3_is_not_setuid(alice: UserHome, server: ServerProcess) -> None:
    fault = (
        f'install -m 755 {FUSERMOUNT} "$scratch/copy"; mount --bind "$scratch/copy" {FUSERMOUNT}'
    )
    result = failed_mount(alice, server, alice.mountpoint(), fault)
    assert "mount failed: Operation not permitted" in result.stderr
    assert f"chmod u+s {FUSERMOUNT}" in result.stderr
    assert "fusermount3: mount failed: Operation not permitted" in alice.log()


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (
            f"mount --bind {FUSERMOUNT} {FUSERMOUNT}; mount -o remount,bind,nosuid {FUSERMOUNT}",
            "mounted with nosuid",
        ),
        ('set -- setpriv --no-new-privs "$@"', "NoNewPrivileges"),
        (WITHOUT_CAPABILITY, "CAP_SYS_ADMIN"),
    ],
)
def test_fusermount3_has_no_privileges(
    alice: UserHome, server: ServerProcess, fault: str, word: str
) -> None:
    result = failed_mount(alice, server, alice.mountpoint(), fault)
    assert word in result.stderr


NO_DEVICE = """
mount -t tmpfs none "$scratch"; cp -a /dev/null /dev/zero /dev/urandom "$scratch"
# The files of the test may be there.
mkdir "$scratch/shm"; mount --bind /dev/shm "$scratch/shm"
mount --move "$scratch" /dev
"""


@pytest.mark.parametrize("user", ["root", ALICE])
def test_there_is_no_device(
    alice: UserHome, home: Home, server: ServerProcess, tmp_path: Path, user: str
) -> None:
    (tmp_path / "mnt").mkdir()
    who: Home = home if user == "root" else alice
    mountpoint = tmp_path / "mnt" if user == "root" else alice.mountpoint()
    result = failed_mount(who, server, mountpoint, NO_DEVICE)
    assert "/dev/fuse is missing: run `modprobe fuse` as root" in result.stderr
    assert "--device /dev/fuse" in result.stderr
    assert "fuse: device not found" in who.log()


def test_the_user_has_no_access_to_the_device(alice: UserHome, server: ServerProcess) -> None:
    fault = 'mknod -m 600 "$scratch/fuse" c 10 229; mount --bind "$scratch/fuse" /dev/fuse'
    result = failed_mount(alice, server, alice.mountpoint(), fault)
    assert "failed to open /dev/fuse: Permission denied" in result.stderr
    assert "chmod 666 /dev/fuse" in result.stderr


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_the_mountpoint_belongs_to_another_user(
    alice: UserHome, server: ServerProcess, mode: int
) -> None:
    mountpoint = alice.directory / "roots"
    mountpoint.mkdir()
    mountpoint.chmod(mode)
    result = failed_mount(alice, server, mountpoint, "")
    assert f"chown {ALICE} {mountpoint}" in result.stderr


@pytest.mark.parametrize("option", ["allow_other", "allow_root"])
def test_other_users_are_not_allowed(alice: UserHome, server: ServerProcess, option: str) -> None:
    fault = 'touch "$scratch/conf"; mount --bind "$scratch/conf" /etc/fuse.conf'
    result = failed_mount(alice, server, alice.mountpoint(), fault, "-o", option)
    assert "need the line `user_allow_other` in /etc/fuse.conf" in result.stderr


def test_root_in_a_container_lacks_a_capability(
    home: Home, server: ServerProcess, tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    result = failed_mount(home, server, tmp_path / "mnt", WITHOUT_CAPABILITY)
    assert "CAP_SYS_ADMIN is missing" in result.stderr
    assert "--device /dev/fuse --cap-add SYS_ADMIN" in result.stderr


def test_the_reason_is_shown_in_the_foreground(alice: UserHome, server: ServerProcess) -> None:
    mountpoint = alice.directory / "roots"
    mountpoint.mkdir()
    result = alice.run("mount", "-f", server.url, mountpoint)
    assert result.exit_code == 7
    assert result.stderr.splitlines()[-1].startswith(
        f"jmapfs: {mountpoint}: cannot mount: user has"
    )
    # The log goes to the terminal, and has the line of libfuse.
    assert "WARNING jmapfs.daemon.daemon: fusermount3: user has no write access" in result.stderr


def test_what_the_system_prints_is_only_captured_meanwhile() -> None:
    script = """
import os
from jmapfs.daemon.mount_errors import captured_stderr
os.write(2, b"before ")
with captured_stderr() as printed:
    os.system("echo fuse: one >&2; echo fusermount3: two: three >&2; echo other >&2")
os.write(2, b"after")
assert printed.lines == ["fuse: one", "fusermount3: two: three", "other"], printed.lines
assert printed.reason == "two: three"
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert result.stderr == b"before after"
