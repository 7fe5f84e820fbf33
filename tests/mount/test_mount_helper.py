"""`mount.jmapfs`, run by the real mount(8), from fstab, by users and for an automount.

A test runs a shell script on a `Machine` where the helper is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jmapfs.daemon.request import parse_options
from jmapfs.errors import UsageError
from tests.machine import Machine
from tests.mounts import Home, Result
from tests.server import ServerProcess
from tests.users import ALICE

pytestmark = pytest.mark.mount

GENERIC = (
    "async,atime,noatime,auto,noauto,context=a:b:c,defaults,dev,nodev,diratime,nodiratime,dirsync,"
    "exec,noexec,fscontext=a,defcontext=a,rootcontext=a,group,nogroup,iversion,noiversion,mand,"
    "nomand,_netdev,nofail,relatime,norelatime,strictatime,nostrictatime,lazytime,nolazytime,suid,"
    "nosuid,silent,loud,owner,noowner,ro,sync,user,user=alice,nouser,users,nousers,nosymfollow,"
    "comment=my mail,x-systemd.automount,x-systemd.idle-timeout=10min,x-gvfs-show,X-mount.mkdir,"
    "X-mount.mkdir=0700,uhelper=udisks2,helper=x"
)


@pytest.mark.parametrize("kind", ["jmapfs", "fuse.jmapfs"])
def test_mount_by_type(machine: Machine, kind: str) -> None:
    printed = machine.works(f"""
        mount -t {kind} home "$DIR" -o "config=$ROOTS,allow_other,noatime,exec,x-mine=1,users"
        ls "$DIR"
        findmnt -n -o SOURCE,FSTYPE "$DIR"
        jmapfs status "$DIR" | grep owner
        umount "$DIR"
        until_gone
        ls -A "$DIR" | wc -l
    """)
    assert "Inbox\n" in printed
    assert "home   fuse.jmapfs\n" in printed
    assert "owner        root" in printed
    assert printed.endswith("\n0\n")


def test_fstab(machine: Machine) -> None:
    printed = machine.works("""
        line="home $DIR jmapfs config=$ROOTS,cache_size=1M,_netdev,nofail,uid=12,umask=022 0 0"
        echo "$line" >"$SCRATCH/fstab"
        mount -a -T "$SCRATCH/fstab"
        stat -c '%u %a' "$DIR/Inbox"
        # It is mounted already, so nothing happens.
        mount -a -T "$SCRATCH/fstab"
        findmnt -n "$DIR" | wc -l
        jmapfs status --json "$DIR" | grep '"limit"'
        umount "$DIR"
        until_gone
        mount -T "$SCRATCH/fstab" "$DIR"
        ls "$DIR"
    """)
    lines = printed.splitlines()
    assert lines[:2] == ["12 755", "1"]
    assert '"limit": 1048576' in printed
    assert "Inbox" in lines


def test_a_user_mounts_what_fstab_allows(machine: Machine) -> None:
    printed = machine.works("""
        echo "home $DIR jmapfs config=$ALICES,noauto,user 0 0" >"$SCRATCH/fstab"
        mount --bind "$SCRATCH/fstab" /etc/fstab
        $ALICE mount "$DIR"
        $ALICE ls "$DIR"
        jmapfs status "$DIR" | grep owner
        $ALICE umount "$DIR"
        until_gone
    """)
    assert "Inbox\n" in printed
    assert f"owner        {ALICE}" in printed


def test_root_mounts_for_a_user(machine: Machine) -> None:
    printed = machine.works(f"""
        mount -t jmapfs home "$DIR" -o "config=$ALICES,setuid={ALICE}"
        $ALICE ls "$DIR"
        jmapfs status "$DIR" | grep owner
        umount "$DIR"
        until_gone
    """)
    assert "Inbox\n" in printed
    assert f"owner        {ALICE}" in printed
    # The cache is in the home of the user, and belongs to the user.
    caches = list((machine.directory / ".cache" / "jmapfs").iterdir())
    assert [path.owner() for path in caches] == [ALICE]


# What systemd does for an automount (src/core/automount.c): the kernel asks for a mount when some
# process opens the directory, and mount(8) runs in the process group of systemd.
AUTOMOUNTER = r"""
import ctypes, fcntl, os, struct, subprocess, sys
directory, arguments = os.environ["DIR"], sys.argv[1:]
os.setpgrp()
requests, kernel = os.pipe()
options = f"fd={kernel},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"systemd-1", directory.encode(), b"autofs", 0, options.encode()) == 0
os.close(kernel)
root = os.open(directory, os.O_RDONLY)
waiting = subprocess.Popen(["ls", directory], start_new_session=True)
packet = os.read(requests, 1000)
version, kind, token = struct.unpack_from("iiI", packet)
assert (version, kind) == (5, 5), (version, kind)  # autofs_ptype_missing_direct
code = subprocess.call(["mount", "-t", "jmapfs", "home", directory, "-o", *arguments])
AUTOFS_IOC_READY, AUTOFS_IOC_FAIL = 0x9360, 0x9361
fcntl.ioctl(root, AUTOFS_IOC_FAIL if code else AUTOFS_IOC_READY, token)
assert waiting.wait(timeout=20) == 0
assert code == 0
subprocess.check_call(["sh", "-c", 'findmnt -n -o SOURCE,FSTYPE "$DIR"; umount "$DIR"'])
"""


def test_automount(machine: Machine) -> None:
    if "autofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("the kernel has no autofs")
    (machine.directory / "automounter").write_text(AUTOMOUNTER)
    printed = machine.works(f"""
        trap 'umount --lazy "$DIR" || true; umount --lazy "$DIR" || true' EXIT
        {sys.executable} "$ALICE_HOME/automounter" "config=$ROOTS,x-systemd.automount"
    """)
    assert "Inbox\n" in printed
    assert "fuse.jmapfs" in printed


def helper(home: Home, *arguments: str) -> Result:
    home.program = (
        sys.executable,
        "-c",
        "from jmapfs.__main__ import mount_helper; mount_helper()",
    )
    return home.run(*arguments)


def test_exit_codes(home: Home, server: ServerProcess, tmp_path: Path) -> None:
    directory = str(tmp_path / "missing")
    assert helper(home, server.url, directory, "-o", "rw,nope").exit_code == 1
    assert helper(home, server.url, directory, "-o", "remount,ro").exit_code == 1
    assert helper(home, server.url, directory, "-o", "setuid=no such user").exit_code == 1
    assert helper(home, server.url).exit_code == 1
    result = helper(home, server.url, directory, "-s", "-o", "rw,nope,poll_interval=5")
    assert result.exit_code == 32
    assert "the mountpoint does not exist" in result.stderr
    assert helper(home, server.url, directory, "-fnv", "-t", "fuse.jmapfs").exit_code == 0
    assert helper(home, server.url, directory, "-f", "-o", GENERIC).exit_code == 0


def test_generic_options_have_no_effect() -> None:
    plain = parse_options([])
    for option in GENERIC.split(","):
        assert parse_options([option]) == plain
    for option in ("rw", "nonempty", "remount", "xattr", "comment", "notes=x", "noro"):
        with pytest.raises(UsageError, match=f"-o {option}"):
            parse_options([option])
