"""Frozen, the tree stands still for a copy, whatever happens to the account meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from tests import corpus
from tests.mount.test_life import has_ended
from tests.mounting import Home, Mounted, command, fixed, wait_until
from tests.server import NewEmail, ServerProcess, server_process
from tests.server.model import utc_date

pytestmark = pytest.mark.mount

State = dict[str, tuple[tuple[int, ...], bytes]]

ABOUT = ".jmapfs.json"


def new_emails(first: int, count: int, mailbox_id: str) -> list[NewEmail]:
    """Return small mails; no two numbers give the same one, nor the same time of receipt."""
    plain = corpus.plain_mails()
    return [
        NewEmail(
            corpus.varied(plain[number % len(plain)], number),
            (mailbox_id,),
            received_at=utc_date(datetime(2024, 3, 1, tzinfo=UTC) + timedelta(minutes=number)),
        )
        for number in range(first, first + count)
    ]


class Mail:
    """The account on the server, and what happens to it."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.control = server.control
        self.ids = {box.name: box.id for box in self.control.dump().mailboxes}
        for name in ("Inbox", "Work", "Lists"):
            if name not in self.ids:
                self.ids[name] = self.control.create_mailbox(name)
        for number, name in enumerate(("Inbox", "Work", "Lists")):
            self.control.add_emails(new_emails(100 * number, 20, self.ids[name]))
        self._next = 1000

    def churn(self, times: int = 1) -> None:
        """Have mail arrive, move, and go, in all mailboxes; four changes each time."""
        for _ in range(times):
            emails = {name: self.control.dump().emails_in(box) for name, box in self.ids.items()}
            self.control.add_emails(new_emails(self._next, 1, self.ids["Inbox"]))
            self._next += 1
            if emails["Work"]:
                self.control.move_email(emails["Work"][0].id, self.ids["Work"], self.ids["Lists"])
            if emails["Lists"]:
                self.control.destroy_email(emails["Lists"][-1].id)
            if emails["Inbox"]:
                self.control.copy_email(emails["Inbox"][-1].id, self.ids["Work"])

    def tree(self) -> dict[str, Counter[str]]:
        """Return the SHA-256 of the mails that are to be shown, by top-level directory."""
        dump = self.control.dump()
        return {
            box.name: Counter(email.sha256 for email in dump.emails_in(box.id))
            for box in dump.mailboxes
        }


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with server_process("empty") as server:
        yield server


@pytest.fixture
def mail(server: ServerProcess) -> Mail:
    return Mail(server)


@pytest.fixture
def mount(home: Home, mail: Mail) -> Iterator[Mounted]:
    with home.mounted(mail.server.url) as mount:
        yield mount


def state(mount: Mounted) -> State:
    """Return everything there is to see, looked up and read."""
    found = {
        path: (fixed(status), b"" if (mount.path / path).is_dir() else content(mount, path))
        for path, status in mount.entries().items()
    }
    found[ABOUT] = (fixed((mount.path / ABOUT).lstat()), content(mount, ABOUT))
    return found


def content(mount: Mounted, path: str) -> bytes:
    return (mount.path / path).read_bytes()


def tree(found: State) -> dict[str, Counter[str]]:
    shown: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path, (status, data) in found.items():
        directory, _, name = path.rpartition("/")
        if name.endswith(".eml"):
            shown[directory][sha256(data).hexdigest()] += 1
            assert status[5] == len(data)
        elif path and path != ABOUT:
            shown[path].update()
    return dict(shown)


def assert_live(mount: Mounted, mail: Mail, before: State) -> None:
    """Everything is as the server has it, by names known before first, then by listing."""
    still = {path for path in before if (mount.path / path).exists()}
    found = state(mount)
    assert still == before.keys() & found.keys()
    assert tree(found) == mail.tree()
    assert json.loads(found[ABOUT][1])["state"] == mail.control.dump().states["Email"]


def freeze(mount: Mounted, *options: str) -> None:
    result = mount.home.run("freeze", *options, mount.path)
    assert result.exit_code == 0, result.stderr


def wait_until_thawed(mount: Mounted, seconds: float = 15) -> None:
    """Wait for a thaw that nobody asked for, and until the kernel has been told of it."""
    wait_until(lambda: mount.ask("status")["frozen"] is None, seconds)
    # One at a time: this is answered when the other has come to its end.
    assert not mount.ask("thaw")["was_frozen"]


def thaw(mount: Mounted) -> None:
    result = mount.home.run("thaw", mount.path)
    assert result.exit_code == 0, result.stderr


# --- One state


def test_a_walk_among_changes_sees_one_state(mail: Mail, mount: Mounted) -> None:
    before = state(mount)
    freeze(mount)
    assert state(mount) == before
    seen: State = {}
    for number, path in enumerate([*before, *reversed(before)]):
        if number % 10 == 0:
            mail.churn()
            mount.sync()
        data = b"" if (mount.path / path).is_dir() else content(mount, path)
        seen[path] = fixed((mount.path / path).lstat()), data
        assert seen[path] == before[path]
    assert state(mount) == before
    assert tree(before) != mail.tree()
    thaw(mount)
    assert_live(mount, mail, before)


@pytest.mark.parametrize("kernel", ["warm", "cold"])
def test_rsync_among_changes_copies_one_state(
    home: Home, mail: Mail, tmp_path: Path, kernel: str
) -> None:
    with home.mounted(mail.server.url) as first:
        mount = first
        before = state(mount)
        if kernel == "cold":
            # Its content is in the cache on disk; the kernel knows nothing of it.
            mount.umount()
            mount = home.mount(mail.server.url, mount.path)
        freeze(mount)
        target = tmp_path / "copy"
        seconds = 2
        while copy_among_changes(mail, mount, before, target, seconds) < 3:
            # The machine has other things to do: once more, and more slowly.
            seconds *= 4
            assert seconds <= 32
            shutil.rmtree(target)
        if kernel == "warm":
            assert state(mount) == before
        thaw(mount)
        assert_live(mount, mail, before)
        # What has stayed is not copied again, and nothing that went stays.
        command("rsync", "-aH", "--delete", f"{mount.path}/", target)
        assert command("diff", "-r", mount.path, target) == ""


def copy_among_changes(
    mail: Mail, mount: Mounted, before: State, target: Path, seconds: int
) -> int:
    """Have rsync take some seconds for one state; return how often there were changes meanwhile."""
    size = sum(len(data) for _, data in before.values())
    rate = f"--bwlimit={max(1, size // 1024 // seconds)}"
    changes = 0
    with subprocess.Popen(["rsync", "-aH", rate, f"{mount.path}/", str(target)]) as process:
        while process.poll() is None:
            mail.churn()
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


def test_300_changes_behind_a_freeze(mail: Mail, mount: Mounted) -> None:
    before = state(mount)
    freeze(mount)
    work, lists, inbox = (mail.ids[name] for name in ("Work", "Lists", "Inbox"))
    mail.control.add_emails(new_emails(500, 100, work))
    for email in mail.control.dump().emails_in(inbox):
        mail.control.move_email(email.id, inbox, lists)
    mail.churn(35)
    mail.control.destroy_emails([email.id for email in mail.control.dump().emails_in(work)][::2])
    mail.control.rename_mailbox(lists, "Renamed")
    mail.control.create_mailbox("Lists")
    mail.control.create_mailbox("Deep", lists)
    mail.control.move_mailbox(inbox, work)
    mount.sync()
    assert state(mount) == before
    thaw(mount)
    still = {path for path in before if (mount.path / path).exists()}
    found = state(mount)
    assert still == before.keys() & found.keys()
    expected = mail.tree()
    expected["Renamed/Deep"] = expected.pop("Deep")
    expected["Work/Inbox"] = expected.pop("Inbox")
    assert tree(found) == expected
    with mount.home.mounted(mail.server.url, path=mount.home.directory / "other") as other:
        assert state(other) == found


def test_the_index_goes_on_behind_a_freeze(home: Home, mail: Mail, mount: Mounted) -> None:
    before = state(mount)
    known = mount.status()
    assert known["frozen"] is None
    freeze(mount)
    frozen = mount.status()["frozen"]
    assert set(frozen) == {"since", "until"}
    mail.churn()
    mount.sync()
    after = mount.status()
    assert after["state"] == mail.control.dump().states["Email"] != known["state"]
    about = json.loads(content(mount, ABOUT))
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
    assert_live(mount, mail, before)

    # And again: it is the state of then.
    second = state(mount)
    freeze(mount)
    mail.churn()
    mount.sync()
    assert state(mount) == second
    thaw(mount)
    assert_live(mount, mail, second)


def test_it_ends_by_itself(home: Home, mail: Mail, mount: Mounted) -> None:
    before = state(mount)
    freeze(mount, "--timeout", "1s")
    mail.churn()
    mount.sync()
    # In this order: it may end at any moment, and then shows something else.
    try:
        shown = state(mount).keys()
    except FileNotFoundError:
        assert mount.ask("status")["frozen"] is None
    else:
        assert mount.ask("status")["frozen"] is None or shown == before.keys()
    wait_until_thawed(mount)
    assert_live(mount, mail, before)
    assert "the freeze ends after its time" in home.log()
    assert home.run("thaw", mount.path).exit_code == 2
    # The end of the first freeze is not that of the second. Asked without a process, which may
    # take longer to start than the first one lasts.
    mount.ask("freeze", seconds=1)
    assert mount.ask("thaw")["was_frozen"]
    freeze(mount)
    time.sleep(1.2)
    assert mount.status()["frozen"]


def test_times_that_cannot_be(home: Home, mount: Mounted) -> None:
    for timeout in ("0s", "30d", "-1", "soon"):
        assert home.run("freeze", f"--timeout={timeout}", mount.path).exit_code == 2
    assert mount.status()["frozen"] is None


def test_offline_behind_a_freeze(mail: Mail, mount: Mounted) -> None:
    before = state(mount)
    freeze(mount)
    mail.server.stop()
    mount.home.run("sync", mount.path)
    assert mount.status()["online"] is False
    assert state(mount) == before
    thaw(mount)
    assert json.loads(content(mount, ABOUT))["online"] is False
    mail.server.restart_on_same_port()


def test_listings_and_files_across_a_thaw(mail: Mail, mount: Mounted) -> None:
    mail.control.add_emails(new_emails(3000, 600, mail.ids["Inbox"]))
    mount.sync()
    before = state(mount)
    freeze(mount)
    emails = mail.control.dump().emails_in(mail.ids["Inbox"])
    mail.control.destroy_emails([email.id for email in emails[::2]])
    mount.sync()
    inbox = mount.path / "Inbox"
    with os.scandir(inbox) as listing:
        names = [next(listing).name]
        thaw(mount)
        names += [entry.name for entry in listing]
    assert len(names) == len(emails)
    there = [path.name for path in inbox.iterdir()]
    assert [name for name in names if (inbox / name).exists()] == there
    assert_live(mount, mail, before)

    # A file that is only there because of the freeze, and open when it ends.
    found = state(mount)
    freeze(mount)
    mail.control.destroy_emails([email.id for email in emails[1::2]])
    mount.sync()
    path = f"Inbox/{there[0]}"
    with (mount.path / path).open("rb") as file:
        thaw(mount)
        assert not (mount.path / path).exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == found[path][1]
    assert_live(mount, mail, found)


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


def test_a_command_sees_one_state(home: Home, mail: Mail, mount: Mounted, tmp_path: Path) -> None:
    before = state(mount)
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
        mail.churn(3)
        mount.sync()
        (tmp_path / "go").write_text("\n")
        output, _ = process.communicate()
    assert (process.returncode, output) == (5, "out\n--timeout\n")
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text()
    mails = [data for path, (_, data) in sorted(before.items()) if path.endswith(".eml")]
    assert len((tmp_path / "content").read_bytes()) == sum(map(len, mails))
    assert mount.status()["frozen"] is None
    assert_live(mount, mail, before)


def test_a_freeze_that_ends_before_its_command(home: Home, mount: Mounted) -> None:
    for own, exit_code in ((0, 1), (3, 3)):
        script = f"sleep 1; exit {own}"
        result = home.run("freeze", "--timeout", "0.2s", mount.path, "--", "sh", "-c", script)
        assert result.exit_code == exit_code
        assert "the freeze had ended before the command did" in result.stderr


def test_a_command_that_cannot_have_its_freeze(home: Home, mount: Mounted, tmp_path: Path) -> None:
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


def test_a_command_has_its_own_way_with_ctrl_c(home: Home, mount: Mounted) -> None:
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


def test_umount_while_frozen(home: Home, mail: Mail, mount: Mounted) -> None:
    before = state(mount)
    pid = mount.status()["pid"]
    freeze(mount)
    mail.churn()
    mount.sync()
    mount.umount()
    assert has_ended(pid)
    assert list(mount.path.iterdir()) == []
    again = home.mount(mail.server.url, mount.path)
    assert again.status()["frozen"] is None
    assert_live(again, mail, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_daemon_while_frozen(
    mount: Mounted, mail: Mail, number: signal.Signals
) -> None:
    pid = mount.status()["pid"]
    freeze(mount)
    mail.churn()
    mount.sync()
    os.kill(pid, number)
    wait_until(lambda: has_ended(pid))
    assert list(mount.path.iterdir()) == []


def test_the_mount_goes_before_the_command(home: Home, mount: Mounted) -> None:
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


def test_a_command_does_not_end_somebody_elses_freeze(home: Home, server: ServerProcess) -> None:
    with home.mounted(server.url) as mount:
        others = f"sleep 1.5; {sys.executable} -m jmapfs freeze {mount.path}"
        result = home.run("freeze", "--timeout", "1s", mount.path, "--", "sh", "-c", others)
        assert result.exit_code == 1, result
        assert mount.status()["frozen"]
        assert home.run("thaw", mount.path).exit_code == 0
