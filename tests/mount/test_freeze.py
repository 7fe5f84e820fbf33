"""A frozen tree does not change while the account does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.changing_account import (
    STATUS_FILE,
    ChangingAccount,
    State,
    assert_live,
    read,
    read_state,
    small_emails,
    tree_of,
    wait_until_thawed,
)
from tests.mounts import Home, Mounted, command, fixed
from tests.server import ServerProcess
from tests.waits import has_ended, wait_until

pytestmark = pytest.mark.mount


@pytest.fixture
def server(account: ChangingAccount) -> ServerProcess:
    return account.server


def freeze(mount: Mounted, *options: str) -> None:
    result = mount.home.run("freeze", *options, mount.path)
    assert result.exit_code == 0, result.stderr


def thaw(mount: Mounted) -> None:
    result = mount.home.run("thaw", mount.path)
    assert result.exit_code == 0, result.stderr


# --- One state


def test_a_walk_among_changes_sees_one_state(account: ChangingAccount, mount: Mounted) -> None:
    before = read_state(mount)
    freeze(mount)
    assert read_state(mount) == before
    seen: State = {}
    for number, path in enumerate([*before, *reversed(before)]):
        if number % 10 == 0:
            account.churn()
            mount.sync()
        data = b"" if (mount.path / path).is_dir() else read(mount, path)
        seen[path] = fixed((mount.path / path).lstat()), data
        assert seen[path] == before[path]
    assert read_state(mount) == before
    assert tree_of(before) != account.tree()
    thaw(mount)
    assert_live(mount, account, before)


@pytest.mark.parametrize("kernel", ["warm", "cold"])
def test_rsync_among_changes_copies_one_state(
    home: Home, account: ChangingAccount, tmp_path: Path, kernel: str
) -> None:
    with home.mounted(account.server.url) as first:
        mount = first
        before = read_state(mount)
        if kernel == "cold":
            # Its content is in the cache on disk; the kernel knows nothing of it.
            mount.umount()
            mount = home.mount(account.server.url, mount.path)
        freeze(mount)
        target = tmp_path / "copy"
        seconds = 2
        while copy_among_changes(account, mount, before, target, seconds) < 3:
            # The machine has other things to do: once more, and more slowly.
            seconds *= 4
            assert seconds <= 32
            shutil.rmtree(target)
        if kernel == "warm":
            assert read_state(mount) == before
        thaw(mount)
        assert_live(mount, account, before)
        # What has stayed is not copied again, and nothing that went stays.
        command("rsync", "-aH", "--delete", f"{mount.path}/", target)
        assert command("diff", "-r", mount.path, target) == ""


def copy_among_changes(
    account: ChangingAccount, mount: Mounted, before: State, target: Path, seconds: int
) -> int:
    """Copy with rsync for some seconds among changes; return how often the account changed."""
    size = sum(len(data) for _, data in before.values())
    rate = f"--bwlimit={max(1, size // 1024 // seconds)}"
    changes = 0
    with subprocess.Popen(["rsync", "-aH", rate, f"{mount.path}/", str(target)]) as process:
        while process.poll() is None:
            account.churn()
            mount.sync()
            changes += 1
    assert process.returncode == 0
    assert mount.status()["frozen"]
    copied = {
        str(path.relative_to(target)): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }
    assert copied == {path: data for path, (_, data) in before.items() if data}
    return changes


def test_300_changes_during_a_freeze(account: ChangingAccount, mount: Mounted) -> None:
    before = read_state(mount)
    freeze(mount)
    work, lists, inbox = (account.ids[name] for name in ("Work", "Lists", "Inbox"))
    account.control.add_emails(small_emails(500, 100, work))
    for email in account.control.dump().emails_in(inbox):
        account.control.move_email(email.id, inbox, lists)
    account.churn(35)
    account.control.destroy_emails(
        [email.id for email in account.control.dump().emails_in(work)][::2]
    )
    account.control.rename_mailbox(lists, "Renamed")
    account.control.create_mailbox("Lists")
    account.control.create_mailbox("Deep", lists)
    account.control.move_mailbox(inbox, work)
    mount.sync()
    assert read_state(mount) == before
    thaw(mount)
    still = {path for path in before if (mount.path / path).exists()}
    found = read_state(mount)
    assert still == before.keys() & found.keys()
    expected = account.tree()
    expected["Renamed/Deep"] = expected.pop("Deep")
    expected["Work/Inbox"] = expected.pop("Inbox")
    assert tree_of(found) == expected
    with mount.home.mounted(account.server.url, path=mount.home.directory / "other") as other:
        assert read_state(other) == found


def test_the_index_follows_the_account_during_a_freeze(
    home: Home, account: ChangingAccount, mount: Mounted
) -> None:
    before = read_state(mount)
    known = mount.status()
    assert known["frozen"] is None
    freeze(mount)
    frozen = mount.status()["frozen"]
    assert set(frozen) == {"since", "until"}
    account.churn()
    mount.sync()
    after = mount.status()
    assert after["state"] == account.control.dump().states["Email"] != known["state"]
    about = json.loads(read(mount, STATUS_FILE))
    assert (about["state"], about["emails"]) == (known["state"], known["emails"])
    assert os.statvfs(mount.path).f_files == known["emails"]

    # Once frozen is frozen, and a thaw ends it once.
    result = home.run("freeze", mount.path)
    assert result.exit_code == 9
    assert "frozen already" in result.stderr
    assert mount.status()["frozen"] == frozen
    thaw(mount)
    assert mount.status()["frozen"] is None
    result = home.run("thaw", mount.path)
    assert result.exit_code == 2
    assert "not frozen" in result.stderr
    assert_live(mount, account, before)

    # And again: it is the state of then.
    second = read_state(mount)
    freeze(mount)
    account.churn()
    mount.sync()
    assert read_state(mount) == second
    thaw(mount)
    assert_live(mount, account, second)


def test_a_freeze_ends_after_its_timeout(
    home: Home, account: ChangingAccount, mount: Mounted
) -> None:
    before = read_state(mount)
    freeze(mount, "--timeout", "1s")
    account.churn()
    mount.sync()
    # In this order: it may end at any moment, and then shows something else.
    try:
        shown = read_state(mount).keys()
    except FileNotFoundError:
        assert not mount.is_frozen
    else:
        assert not mount.is_frozen or shown == before.keys()
    wait_until_thawed(mount)
    assert_live(mount, account, before)
    assert "the freeze ends because its last lease has expired" in home.log()
    assert home.run("thaw", mount.path).exit_code == 2


def test_timeouts_that_are_refused(home: Home, mount: Mounted) -> None:
    for timeout in ("0s", "30d", "-1", "soon"):
        assert home.run("freeze", f"--timeout={timeout}", mount.path).exit_code == 2
    assert mount.status()["frozen"] is None


def test_a_server_that_stops_during_a_freeze(account: ChangingAccount, mount: Mounted) -> None:
    before = read_state(mount)
    freeze(mount)
    account.server.stop()
    mount.home.run("sync", mount.path)
    assert mount.status()["online"] is False
    assert read_state(mount) == before
    thaw(mount)
    assert json.loads(read(mount, STATUS_FILE))["online"] is False
    account.server.restart_on_same_port()


def test_listings_and_files_across_a_thaw(account: ChangingAccount, mount: Mounted) -> None:
    account.control.add_emails(small_emails(3000, 600, account.ids["Inbox"]))
    mount.sync()
    before = read_state(mount)
    freeze(mount)
    emails = account.control.dump().emails_in(account.ids["Inbox"])
    account.control.destroy_emails([email.id for email in emails[::2]])
    mount.sync()
    inbox = mount.path / "Inbox"
    with os.scandir(inbox) as listing:
        names = [next(listing).name]
        thaw(mount)
        names += [entry.name for entry in listing]
    assert len(names) == len(emails)
    there = [path.name for path in inbox.iterdir()]
    assert [name for name in names if (inbox / name).exists()] == there
    assert_live(mount, account, before)

    # A file that is only there because of the freeze, and open when it ends.
    found = read_state(mount)
    freeze(mount)
    account.control.destroy_emails([email.id for email in emails[1::2]])
    mount.sync()
    path = f"Inbox/{there[0]}"
    with (mount.path / path).open("rb") as file:
        thaw(mount)
        assert not (mount.path / path).exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == found[path][1]
    assert_live(mount, account, found)


# --- For the time of a command


EXIT_CODES = [
    (["true"], 0),
    (["sh", "-c", "exit 3"], 3),
    (["sh", "-c", "kill -9 $$"], 137),
    (["sh", "-c", "kill -TERM $$"], 143),
    (["no-such-command-at-all"], 127),
    (["/etc/passwd"], 126),
]


def test_the_exit_code_is_that_of_the_command(home: Home, mount: Mounted) -> None:
    # That each is frozen shows that the one before it was thawed.
    for arguments, exit_code in EXIT_CODES:
        result = home.run("freeze", mount.path, "--", *arguments)
        assert result.exit_code == exit_code, result
        assert len(result.stderr.splitlines()) == (exit_code in {126, 127})
    assert mount.status()["frozen"] is None


def test_a_command_sees_one_state(
    home: Home, account: ChangingAccount, mount: Mounted, tmp_path: Path
) -> None:
    before = read_state(mount)
    script = (
        'cd "$2"; ls -R "$1" > first; touch ready; read -r _ < go; ls -R "$1" > second;'
        ' cat "$1"/*/*.eml > content; echo out; echo --timeout; exit 5'
    )
    os.mkfifo(tmp_path / "go")
    arguments = ["freeze", str(mount.path), "sh", "-c", script, "sh", str(mount.path)]
    with subprocess.Popen(
        [*home.program, *arguments, str(tmp_path)],
        env=home.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until((tmp_path / "ready").exists)
        assert mount.status()["frozen"]
        account.churn(3)
        mount.sync()
        (tmp_path / "go").write_text("\n")
        output, _ = process.communicate()
    assert (process.returncode, output) == (5, "out\n--timeout\n")
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text()
    mails = [data for path, (_, data) in sorted(before.items()) if path.endswith(".eml")]
    assert len((tmp_path / "content").read_bytes()) == sum(map(len, mails))
    assert mount.status()["frozen"] is None
    assert_live(mount, account, before)


def test_a_freeze_that_ends_before_its_command(home: Home, mount: Mounted) -> None:
    for own, exit_code in ((0, 1), (3, 3)):
        script = f"sleep 1; exit {own}"
        result = home.run("freeze", "--timeout", "0.2s", mount.path, "--", "sh", "-c", script)
        assert result.exit_code == exit_code
        assert "the freeze had ended before the command did" in result.stderr


def test_a_command_is_not_run_if_the_mount_cannot_be_frozen(
    home: Home, mount: Mounted, tmp_path: Path
) -> None:
    freeze(mount)
    trace = tmp_path / "trace"
    assert home.run("freeze", mount.path, "touch", trace).exit_code == 9
    assert mount.status()["frozen"]
    assert home.run("freeze", tmp_path, "touch", trace).exit_code == 10
    assert not trace.exists()


def running(home: Home, mount: Mounted, *arguments: str) -> subprocess.Popen[str]:
    """Start a command with the mount frozen, in a process group as a terminal's job has."""
    process = subprocess.Popen(
        [*home.program, "freeze", str(mount.path), "--", *arguments],
        env=home.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_ctrl_c_ends_the_command_and_the_freeze(home: Home, mount: Mounted) -> None:
    with running(home, mount, "sh", "-c", "echo ready; exec sleep 60") as process:
        assert mount.status()["frozen"]
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "")
    assert mount.status()["frozen"] is None


def test_a_command_can_handle_ctrl_c_itself(home: Home, mount: Mounted) -> None:
    script = "trap 'echo tidying; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    with running(home, mount, "sh", "-c", script) as process:
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (7, "tidying\n")
    assert mount.status()["frozen"] is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_jmapfs_ends_the_command_and_the_freeze(
    home: Home, mount: Mounted, number: signal.Signals
) -> None:
    script = "echo ready; echo $$; exec sleep 60"
    with running(home, mount, "sh", "-c", script) as process:
        assert process.stdout is not None
        command_pid = int(process.stdout.readline())
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert has_ended(command_pid)
    assert mount.status()["frozen"] is None


# --- The end of the mount


def test_umount_while_frozen(home: Home, account: ChangingAccount, mount: Mounted) -> None:
    before = read_state(mount)
    pid = mount.status()["pid"]
    freeze(mount)
    account.churn()
    mount.sync()
    mount.umount()
    assert has_ended(pid)
    assert list(mount.path.iterdir()) == []
    again = home.mount(account.server.url, mount.path)
    assert again.status()["frozen"] is None
    assert_live(again, account, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_daemon_while_frozen(
    mount: Mounted, account: ChangingAccount, number: signal.Signals
) -> None:
    pid = mount.status()["pid"]
    freeze(mount)
    account.churn()
    mount.sync()
    os.kill(pid, number)
    wait_until(lambda: has_ended(pid))
    assert list(mount.path.iterdir()) == []


def test_an_unmount_before_the_command_ends(home: Home, mount: Mounted) -> None:
    script = "echo ready; read -r _; exit 0"
    with subprocess.Popen(
        [*home.program, "freeze", str(mount.path), "--", "sh", "-c", script],
        env=home.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        mount.umount()
        _, errors = process.communicate("\n", timeout=20)
    assert process.returncode == 1
    assert "the freeze had ended before the command did" in errors
    assert len(errors.splitlines()) == 1


def test_a_command_does_not_end_the_freeze_of_another(home: Home, server: ServerProcess) -> None:
    with home.mounted(server.url) as mount:
        others = f"sleep 1.5; {sys.executable} -m jmapfs freeze {mount.path}"
        result = home.run("freeze", "--timeout", "1s", mount.path, "--", "sh", "-c", others)
        assert result.exit_code == 1, result
        assert mount.status()["frozen"]
        assert home.run("thaw", mount.path).exit_code == 0
