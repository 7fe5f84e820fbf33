"""The daemon of a mount is found from the mountpoint, whoever asks and wherever; see `users`."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmapfs.control.mounts import require_mount
from tests import mounts, users
from tests.mounts import Home, Mounted, Result, command
from tests.namespaces import new_namespace
from tests.server import ServerProcess
from tests.users import ALICE, BOB, UserHome, as_user, user_home
from tests.waits import has_ended, wait_until

pytestmark = pytest.mark.mount

JMAPFS = (sys.executable, "-m", "jmapfs")
BARE = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
# The shell's `$0` and `$1` are the source and the target of a bind mount, in which `$2…` runs.
BINDING = 'mount --bind "$0" "$1" && exec "${@:2}"'


@pytest.fixture(scope="module", autouse=True)
def other_users() -> None:
    if reason := users.missing():
        pytest.skip(reason)


@pytest.fixture
def bob() -> Iterator[UserHome]:
    with user_home(BOB) as home:
        yield home


@pytest.fixture
def hers(alice: UserHome, server: ServerProcess) -> Iterator[Mounted]:
    """A mount of Alice, without `allow_root`: root cannot look into it."""
    with alice.mounted(server.url, path=alice.mountpoint()) as mount:
        yield mount


def run(*arguments: str | Path) -> Result:
    """Run a command as root, without any variable that tells where the daemon is."""
    return mounts.run(*arguments, environment=BARE)


def answers(mount: Mounted, *prefix: str) -> bool:
    """Return whether the daemon answers a command; `prefix` says where the command runs."""
    result = run(*prefix, *JMAPFS, "status", "--json", mount.path)
    assert result.exit_code == 0, result.stderr
    return bool(json.loads(result.stdout)["emails"] > 0)


def test_a_cron_job_of_the_user_finds_it(hers: Mounted) -> None:
    assert answers(hers, *as_user(ALICE))


def test_it_is_found_after_logout(hers: Mounted, alice: UserHome) -> None:
    shutil.rmtree(alice.directory / "run")
    assert hers.status()["emails"] > 0
    assert answers(hers, *as_user(ALICE))


def test_a_mount_at_reboot_is_found_by_a_login_session(
    alice: UserHome, server: ServerProcess
) -> None:
    path = alice.mountpoint()
    variables = (f"{name}={alice.environment[name]}" for name in ("HOME", "XDG_CACHE_HOME"))
    secrets = ("JMAPFS_USERNAME=alice@example.org", "JMAPFS_PASSWORD=secret")
    program = ("env", *secrets, *variables, *as_user(ALICE), *JMAPFS)
    result = run(*program, "mount", server.url, path)
    mount = Mounted(alice, path, result)
    try:
        assert result.exit_code == 0, result.stderr
        # This user has a runtime directory now.
        assert mount.status()["emails"] > 0
        assert alice.run("freeze", path, "--", "true").exit_code == 0
    finally:
        mount.clear()


def test_root_commands_the_mount_of_a_user(hers: Mounted) -> None:
    assert answers(hers)
    assert run(*JMAPFS, "sync", hers.path).exit_code == 0
    assert run(*JMAPFS, "freeze", hers.path, "--", "true").exit_code == 0
    assert run(*JMAPFS, "freeze", hers.path).exit_code == 0
    assert hers.status()["frozen"] is not None
    assert run(*JMAPFS, "thaw", hers.path).exit_code == 0
    assert "Inbox" in command(*as_user(ALICE), "ls", hers.path)
    assert run(*JMAPFS, "umount", hers.path).exit_code == 0
    assert list(hers.path.iterdir()) == []


def test_allow_root_hides_names_from_other_users(
    alice: UserHome, home: Home, server: ServerProcess
) -> None:
    """Also names that the kernel has cached, whatever the modes and owners of the files are."""
    path = alice.directory / "roots"
    options = f"allow_root,umask=022,uid={pwd.getpwnam(BOB).pw_uid}"
    with home.mounted(server.url, "-o", options, path=path) as mount:
        mail = mount.path / next(iter(mount.files()))
        for name in (ALICE, BOB):
            for place in (mail, mail.parent):
                # Unlike `stat`, `find` needs nothing that the kernel has not cached.
                result = run(*as_user(name), "find", place, "-maxdepth", "0", "-size", "+0")
                assert "Permission denied" in result.stderr
        assert command("stat", "--format=%a %u", path) == "700 0\n"


def test_root_cannot_read_the_mount_of_a_user(hers: Mounted, tmp_path: Path) -> None:
    for arguments in (("prefetch", hers.path), ("snapshot", hers.path, tmp_path / "snapshots")):
        result = run(*JMAPFS, *arguments)
        assert result.exit_code == 2
        assert f"run the command as {ALICE}" in result.stderr


def test_another_mount_namespace(hers: Mounted) -> None:
    hiding = 'for path in /run /dev/shm /var/tmp; do mount -t tmpfs none "$path"; done; exec "$@"'
    hidden = (*new_namespace(keep=hers.path), "sh", "-c", hiding, "sh")
    assert answers(hers, *hidden)
    assert answers(hers, *hidden, *as_user(ALICE))


# As `unshare --user --map-root-user --mount`. Inside, the program is perhaps not readable.
IN_USER_NAMESPACE = """
import ctypes, os, sys
import jmapfs.cli.freeze_command, jmapfs.cli.status_command
from jmapfs.cli.main import main
user, group = os.getuid(), os.getgid()
assert ctypes.CDLL(None).unshare(0x10000000 | 0x00020000) == 0
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
assert os.getuid() == 0
main()
"""


def test_a_mount_in_another_mount_namespace(alice: UserHome, server: ServerProcess) -> None:
    path = alice.mountpoint()
    service = UserHome(alice.directory, prefix=new_namespace(keep=alice.directory))
    result = service.run("mount", server.url, path)
    assert result.exit_code == 0, result.stderr
    assert list(path.iterdir()) == []
    pids = set()
    for command_prefix in ([], as_user(ALICE)):
        result = run(*command_prefix, *JMAPFS, "status", path)
        assert result.exit_code == 10
        assert "only in another mount namespace" in result.stderr
        found = json.loads(run(*command_prefix, *JMAPFS, "status", "--json").stdout)
        (status,) = [one for one in found if one["mountpoint"] == str(path)]
        assert (status["owner"], status["emails"] > 0) == (ALICE, True)
        pids.add(status["pid"])
    (pid,) = pids
    entering = ("nsenter", "--mount", "--target", str(pid))
    assert run(*entering, *JMAPFS, "umount", path).exit_code == 0
    wait_until(lambda: has_ended(pid))
    assert "not mounted there" in run(*JMAPFS, "status", path).stderr


def test_another_user_namespace(hers: Mounted) -> None:
    inside = (*as_user(ALICE), sys.executable, "-c", IN_USER_NAMESPACE)
    result = run(*inside, "status", "--json", hers.path)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["emails"] > 0
    assert run(*inside, "freeze", hers.path, "--", "true").exit_code == 0


def test_another_network_namespace(hers: Mounted) -> None:
    # Only root can enter the namespace of the daemon.
    assert answers(hers, "unshare", "--net")
    result = run("unshare", "--net", *as_user(ALICE), *JMAPFS, "status", hers.path)
    assert result.exit_code == 10
    assert "its daemon is in another network namespace" in result.stderr


def test_a_container_with_the_mount(hers: Mounted) -> None:
    # Neither the sockets nor the processes of the daemon can be seen.
    options = ("--net", "--pid", "--fork", "--mount-proc")
    container = (*new_namespace(*options, keep=hers.path), *as_user(ALICE))
    assert "Inbox" in run(*container, "ls", hers.path).stdout
    result = run(*container, *JMAPFS, "status", hers.path)
    assert result.exit_code == 10
    assert "its daemon runs, but not where it can be reached" in result.stderr
    pid = hers.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "does not answer" in run(*container, *JMAPFS, "status", hers.path).stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    assert hers.status()["pid"] == pid


def test_a_bind_mount_of_it(hers: Mounted) -> None:
    other = Path(tempfile.mkdtemp(prefix="jmapfs-test-"))
    other.chmod(0o755)
    try:
        inside = (*new_namespace(keep=hers.path), "bash", "-c", BINDING, str(hers.path), str(other))
        # The kernel asks the user for the attributes of the directory that is bound.
        result = run(*inside, *JMAPFS, "status", "--json", other)
    finally:
        other.rmdir()
    assert result.exit_code == 0, result.stderr
    status = json.loads(result.stdout)
    assert status["emails"] > 0
    assert status["mountpoint"] == str(other)


def test_a_bind_mount_of_a_part(home: Home, server: ServerProcess, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    with home.mounted(server.url) as mount:
        alone = new_namespace(keep=mount.path)
        inside = (*alone, "bash", "-c", BINDING, str(mount.path / "Inbox"), str(part))
        assert run(*inside, *JMAPFS, "freeze", part, "--", "true").exit_code == 0
        assert run(*inside, *JMAPFS, "prefetch", part).exit_code == 0
        stop = ("sh", "-c", "kill $PPID")
        assert run(*inside, *JMAPFS, "watch", part, "--", *stop).exit_code == 130
        # The files are not where the mount says that they are.
        result = run(*inside, *JMAPFS, "snapshot", part, tmp_path / "snapshots")
        assert result.exit_code == 2
        assert "a bind mount of a part" in result.stderr


def test_symbolic_links_to_a_mountpoint(hers: Mounted, alice: UserHome) -> None:
    link = alice.directory / "link"
    link.symlink_to("second")
    (alice.directory / "second").symlink_to(hers.path)
    assert run(*JMAPFS, "status", link).exit_code == 0
    link.unlink()
    link.symlink_to("link")
    assert run(*JMAPFS, "status", link).exit_code == 10


def test_another_user_neither_sees_nor_reaches_it(hers: Mounted, bob: UserHome) -> None:
    assert json.loads(bob.run("status", "--json").stdout) == []
    for name in ("status", "sync", "freeze", "thaw", "umount", "watch", "prefetch"):
        result = bob.run(name, hers.path)
        assert result.exit_code in ({2, 10} if name == "prefetch" else {10}), result
        assert result.stdout == ""
    assert f"mounted by {ALICE}" in bob.run("status", hers.path).stderr
    script = """
import socket, sys
for address in sys.argv[1:]:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect("\\0" + address)
    connection.settimeout(10)
    try:
        connection.sendall(b'{"command": "status"}\\n')
        print(connection.recv(1000))
    except (BrokenPipeError, ConnectionResetError):
        print(b"")
"""
    addresses = [one[1:].decode() for one in require_mount(hers.path).daemon_addresses()]
    assert len(addresses) == 1
    answer = command(*as_user(BOB), sys.executable, "-c", script, *addresses)
    assert answer == "b''\n"
    assert hers.status()["frozen"] is None


def test_another_user_cannot_pretend_to_be_the_daemon(hers: Mounted) -> None:
    (address,) = require_mount(hers.path).daemon_addresses()
    prefix = address[1:].decode().rpartition("/")[0]
    script = """
import socket, sys
names = [f"{sys.argv[1]}/{number:032x}" for number in range(20)]
# Names that break the lines of the kernel's list.
names += [f"x\\na: b c d e f g @{sys.argv[1]}/z", f"x\\n@{sys.argv[1]}", f"{sys.argv[1]}/\\xff\\n"]
listening = []
for name in names:
    listening.append(socket.socket(socket.AF_UNIX))
    listening[-1].bind("\\0" + name)
    listening[-1].listen(1)
# Clients that are never accepted.
waiting = [socket.socket(socket.AF_UNIX) for number in range(10)]
for client in waiting:
    client.setblocking(False)
    client.connect_ex("\\0" + names[1])
print(flush=True)
listening[0].accept()[0].recv(1000)
print("received", flush=True)
"""
    with subprocess.Popen(
        [*as_user(BOB), sys.executable, "-c", script, prefix], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert len(list(require_mount(hers.path).daemon_addresses())) == 21
        try:
            assert answers(hers)
            assert answers(hers, *as_user(ALICE))
            assert hers.status()["emails"] > 0
        finally:
            process.kill()


def test_root_sees_all_mounts_with_their_owners(
    hers: Mounted, home: Home, server: ServerProcess
) -> None:
    with home.mounted(server.url) as own:
        found = json.loads(run(*JMAPFS, "status", "--json").stdout)
        owners = {one["mountpoint"]: one["owner"] for one in found}
        assert owners.items() >= {str(hers.path): ALICE, str(own.path): "root"}.items()
        text = run(*JMAPFS, "status").stdout
        assert f"owner        {ALICE}" in text
        # Alice sees only hers. Other tests may run as Alice too.
        found = json.loads(hers.home.run("status", "--json").stdout)
        assert str(hers.path) in {one["mountpoint"] for one in found}
        assert {one["owner"] for one in found} == {ALICE}


def test_a_daemon_that_has_died(hers: Mounted) -> None:
    os.kill(hers.status()["pid"], signal.SIGKILL)
    wait_until(lambda: list(require_mount(hers.path).daemon_addresses()) == [])
    # The kernel tells only the owner that the daemon has died.
    for prefix, words in (([], "does not answer"), (as_user(ALICE), "has died")):
        result = run(*prefix, *JMAPFS, "status", hers.path)
        assert result.exit_code == 10
        assert words in result.stderr
