"""`jmapfs watch` on real mounts: what it prints, when it runs a command, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Self

import pytest

from jmapfs.control.messages import ChangesRequest
from tests.documents.markdown import blocks, text
from tests.mails import received_at, text_mail
from tests.mounts import Home, Mounted, command
from tests.server import ControlClient, ServerProcess, server_process
from tests.waits import wait_until

pytestmark = pytest.mark.mount

SECONDS = 20.0


class Watch:
    """A running `jmapfs watch` that has begun."""

    def __init__(
        self,
        home: Home,
        *arguments: str | Path,
        output: int | IO[bytes] = subprocess.PIPE,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [*home.program, "watch", *map(str, arguments)],
            env={**home.environment, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._output = self._errors = b""
        try:
            self.first_line = self.error()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=SECONDS)

    def lines(self, count: int) -> list[str]:
        """Wait for so many lines, and return them."""
        while self._output.count(b"\n") < count:
            self._output += self._read(self.process.stdout)
        *lines, rest = self._output.split(b"\n", count)
        self._output = rest
        return [line.decode() for line in lines]

    def error(self) -> str:
        """Wait for a line on stderr, and return it."""
        while b"\n" not in self._errors:
            self._errors += self._read(self.process.stderr)
        line, _, self._errors = self._errors.partition(b"\n")
        return line.decode()

    def events(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines(count)]

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code, and what stderr has in addition."""
        output, errors = self.process.communicate(timeout=SECONDS)
        assert not self._output + (output or b"")
        return self.process.returncode, (self._errors + errors).decode()

    def _read(self, stream: Any) -> bytes:
        assert select.select([stream], [], [], SECONDS)[0], self._errors
        data = os.read(stream.fileno(), 1 << 16)
        assert data, (self._errors, self.process.communicate(timeout=SECONDS))
        return data


def arrive(control: ControlClient, number: int, *mailbox_ids: str) -> str:
    return control.add_email(text_mail(number), mailbox_ids, received_at=received_at(number))


@pytest.fixture(scope="module")
def module_server() -> Iterator[ServerProcess]:
    with server_process("empty") as server:
        for number, name in enumerate(("Inbox", "Work")):
            server.control.create_mailbox(name, mailbox_id=name)
            arrive(server.control, number, name)
        yield server


@pytest.fixture
def control(module_server: ServerProcess) -> Iterator[ControlClient]:
    with ControlClient(module_server.control.url) as control:
        yield control


@pytest.fixture(scope="module")
def mount(
    module_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    """One mount for most tests: each of them only looks at its own changes."""
    home = Home(tmp_path_factory.mktemp("home"), "alice@example.org", "secret")
    with home.mounted(module_server.url) as mount:
        yield mount


def new_name(mount: Mounted, before: set[str]) -> str:
    (path,) = set(mount.files()) - before
    return path


def test_a_line_for_each_name(mount: Mounted, control: ControlClient) -> None:
    before, counts = set(mount.files()), mount.counts()
    with Watch(mount.home, mount.path) as watch:
        assert watch.first_line == f"jmapfs: watching {mount.path}"
        email = arrive(control, 10, "Inbox")
        mount.sync()
        (line,) = watch.lines(1)
        path = new_name(mount, before)
        assert line == f"+  {path}"
        name = path.removeprefix("Inbox/")
        # These change no name: the next line is that of the next change.
        control.set_keywords(email, ["$seen"])
        mount.sync()
        mount.sync()
        # The account is listed again.
        control.forget_changes()
        control.copy_email(email, "Work")
        mount.sync()
        assert watch.lines(1) == [f"+  Work/{name}"]
        control.remove_email(email, "Inbox")
        mount.sync()
        assert watch.lines(1) == [f"-  Inbox/{name}"]
        control.move_email(email, "Work", "Inbox")
        mount.sync()
        assert watch.lines(1) == [f">  Work/{name} → Inbox/{name}"]
        box = control.create_mailbox("Lists", "Work")
        mount.sync()
        assert watch.lines(1) == ["+  Work/Lists/"]
        control.set_mailboxes(email, [box])
        mount.sync()
        assert watch.lines(1) == [f">  Inbox/{name} → Work/Lists/{name}"]
        control.rename_mailbox(box, "Other lists\n\x1b[1m→")
        mount.sync()
        (line,) = watch.lines(1)
        (renamed,) = (one for one in (mount.path / "Work").iterdir() if one.is_dir())
        assert line == f"R  Work/Lists/ → Work/{renamed.name}/"
        control.destroy_email(email)
        control.destroy_mailbox(box)
        mount.sync()
        assert watch.lines(2) == [f"-  Work/{renamed.name}/{name}", f"-  Work/{renamed.name}/"]
    assert (mount.counts() - counts).reads == 0
    assert (mount.counts() - counts).blobs == 0


def test_json_for_the_names_below_a_directory(mount: Mounted, control: ControlClient) -> None:
    before = set(mount.files())
    with Watch(mount.home, "--json", mount.path / "Work") as watch:
        email = arrive(control, 20, "Inbox")
        mount.sync()
        name = new_name(mount, before).removeprefix("Inbox/")
        control.move_email(email, "Inbox", "Work")
        mount.sync()
        assert watch.events(1) == [{"change": "added", "path": name, "directory": False}]
        box = control.create_mailbox("Box", "Work")
        mount.sync()
        assert watch.events(1) == [{"change": "added", "path": "Box", "directory": True}]
        control.set_mailboxes(email, [box])
        mount.sync()
        assert watch.events(1) == [
            {"change": "moved", "path": f"Box/{name}", "directory": False, "old": name}
        ]
        # It leaves, and comes back with its mail.
        control.move_mailbox(box, "Inbox")
        mount.sync()
        assert watch.events(1) == [{"change": "gone", "path": "Box", "directory": True}]
        control.move_mailbox(box, "Work")
        mount.sync()
        assert watch.events(2) == [
            {"change": change, "path": "Box", "directory": True} for change in ("added", "unknown")
        ]
        control.rename_mailbox("Work", "Job")
        mount.sync()
        assert watch.events(1) == [{"change": "unknown", "path": ".", "directory": True}]
        control.rename_mailbox("Work", "Work")
        control.destroy_email(email)
        control.destroy_mailbox(box)
        mount.sync()


def test_nothing_while_the_mount_is_frozen(mount: Mounted, control: ControlClient) -> None:
    before = set(mount.files())
    with Watch(mount.home, mount.path) as watch:
        mount.freeze(60)
        emails = [arrive(control, number, "Inbox") for number in (30, 31)]
        mount.sync()
        # A client that asks during the freeze waits as well.
        position = mount.ask(ChangesRequest()).position
        assert not mount.ask(ChangesRequest(position, 0.2)).changes
        control.destroy_email(emails[0])
        mount.sync()
        mount.thaw()
        (line,) = watch.lines(1)
        assert line == f"+  {new_name(mount, before)}"


def test_an_unknown_position(mount: Mounted) -> None:
    """The daemon was restarted, or the position was given long ago."""
    reply = mount.ask(ChangesRequest("an earlier daemon"))
    assert (reply.unknown, reply.changes) == ([""], [])
    assert mount.ask(ChangesRequest()).position == reply.position


def test_waiting_costs_no_request_to_the_server(mount: Mounted, control: ControlClient) -> None:
    mount.sync()
    control.reset_counts()
    with Watch(mount.home, mount.path):
        position = mount.ask(ChangesRequest()).position
        assert mount.ask(ChangesRequest(position, 0.3)) == mount.ask(ChangesRequest())
    assert control.counts().http_requests == 0


@pytest.mark.parametrize("is_late", [False, True])
def test_it_ends_quietly_with_its_reader(
    mount: Mounted, control: ControlClient, *, is_late: bool
) -> None:
    with Watch(mount.home, mount.path) as watch:
        if is_late:
            # While it is stopped, the reader leaves and a change comes.
            os.kill(watch.process.pid, signal.SIGSTOP)
        assert watch.process.stdout is not None
        watch.process.stdout.close()
        watch.process.stdout = None
        if is_late:
            arrive(control, 40, "Inbox")
            mount.sync()
            os.kill(watch.process.pid, signal.SIGCONT)
        assert watch.process.wait(SECONDS) == 0
        assert watch.process.stderr is not None
        assert watch.process.stderr.read() == b""


def test_a_full_disk_ends_it(mount: Mounted, control: ControlClient) -> None:
    with Path("/dev/full").open("wb") as full, Watch(mount.home, mount.path, output=full) as watch:
        arrive(control, 45, "Inbox")
        mount.sync()
        assert watch.end() == (8, "jmapfs: the standard output: No space left on device\n")


def test_a_stopped_watch_loses_nothing(mount: Mounted, control: ControlClient) -> None:
    before = set(mount.files())
    with Watch(mount.home, mount.path) as watch:
        os.kill(watch.process.pid, signal.SIGSTOP)
        arrive(control, 50, "Inbox")
        mount.sync()
        first = new_name(mount, before)
        arrive(control, 51, "Inbox")
        mount.sync()
        second = new_name(mount, {*before, first})
        os.kill(watch.process.pid, signal.SIGCONT)
        assert watch.lines(2) == [f"+  {first}", f"+  {second}"]
        os.kill(watch.process.pid, signal.SIGTERM)
        assert watch.end() == (130, "jmapfs: interrupted\n")


class Recorder:
    """A COMMAND that records its runs, and waits in each of them until the test lets it end.

    Two runs at the same time would be seen: each of them needs the directory `running`.
    """

    def __init__(self, directory: Path, mount: Mounted) -> None:
        self._directory = directory
        self._runs = directory / "runs"
        script = f"""
            cd {directory}
            mkdir running || echo overlap >>runs
            sed s/^/=/ >>runs
            ls {mount.path}/Inbox | wc -l >>runs
            echo started >started
            read -r code <end
            rmdir running
            exit "$code"
        """
        for name in ("started", "end"):
            os.mkfifo(directory / name)
        self.command = ("sh", "-c", script)

    def wait(self) -> None:
        """Wait until the command runs."""
        assert (self._directory / "started").read_text() == "started\n"

    def end(self, code: int = 0) -> None:
        """End the command."""
        (self._directory / "end").write_text(f"{code}\n")

    @property
    def runs(self) -> list[str]:
        """What the runs so far have read, each with the number of mails that they have seen."""
        return self._runs.read_text().splitlines()


def test_a_command_runs_once_for_all_changes_during_its_run(
    mount: Mounted, control: ControlClient, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path, mount)
    count = len(list((mount.path / "Inbox").iterdir()))
    with Watch(mount.home, mount.path, "--", *recorder.command) as watch:
        recorder.wait()
        assert recorder.runs == ["=?  ./", f"{count}"]
        paths: list[str] = []
        for number in (60, 61):
            before = set(mount.files())
            arrive(control, number, "Inbox")
            mount.sync()
            paths.append(new_name(mount, before))
        recorder.end()
        recorder.wait()
        assert recorder.runs[2:] == [*(f"=+  {path}" for path in paths), f"{count + 2}"]
        # A failure is reported, and the next change is not missed.
        recorder.end(3)
        assert watch.error() == "jmapfs: sh: ended with exit code 3"
        email = arrive(control, 62, "Inbox")
        mount.sync()
        recorder.wait()
        assert recorder.runs[-1] == f"{count + 3}"
        # A signal ends both.
        os.kill(watch.process.pid, signal.SIGTERM)
        assert watch.end() == (130, "jmapfs: interrupted\n")
    control.destroy_email(email)
    mount.sync()


def test_a_command_inherits_no_descriptor_and_gets_json(mount: Mounted) -> None:
    script = "cat; echo; ls -l /proc/self/fd | wc -l; kill -9 $$"
    with Watch(mount.home, "--json", mount.path, "--", "sh", "-c", script) as watch:
        assert watch.events(1) == [{"change": "unknown", "path": ".", "directory": True}]
        # "total 0", 0, 1, 2, and the directory.
        assert watch.lines(2) == ["", "5"]
        assert watch.error() == "jmapfs: sh: ended by signal 9"


def test_it_ends_with_the_daemon(module_server: ServerProcess, home: Home) -> None:
    with home.mounted(module_server.url) as mount, Watch(home, mount.path) as watch:
        os.kill(mount.ask_status().pid, signal.SIGKILL)
        code, errors = watch.end()
        assert code == 10
        assert "the daemon of this mount has died" in errors


def test_several_accounts(home: Home) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(server_process("empty"))
        server.control.add_account("Ateam", "The Team")
        team = stack.enter_context(closing(server.control.account("Ateam")))
        for control in (server.control, team):
            control.create_mailbox("Inbox", mailbox_id="Inbox")
        mount = stack.enter_context(home.mounted(server.url, "--all-accounts"))
        all_, one = (
            stack.enter_context(Watch(home, path))
            for path in (mount.path, mount.path / "The-Team" / "Inbox")
        )
        arrive(server.control, 1, "Inbox")
        mount.sync()
        name = next((mount.path / "alice@example.org/Inbox").iterdir()).name
        assert all_.lines(1) == [f"+  alice@example.org/Inbox/{name}"]
        arrive(team, 1, "Inbox")
        mount.sync()
        assert all_.lines(1) == [f"+  The-Team/Inbox/{name}"]
        assert one.lines(1) == [f"+  {name}"]
        mount.umount()
        for watch in (all_, one):
            code, errors = watch.end()
            assert code == 10
            assert errors.startswith(f"jmapfs: {mount.path}: ")


def test_notmuch_follows_the_mail(mount: Mounted, control: ControlClient, tmp_path: Path) -> None:
    """The unit in docs/backup-tools.md: `notmuch new` finds each change."""
    unit = ConfigParser(interpolation=None)
    unit.read_string(*blocks(text("docs/backup-tools.md"), "notmuch, for each new mail"))
    program, *arguments = unit["Service"]["ExecStart"].replace("%h/mail", str(mount.path)).split()
    assert (program, *arguments[:1]) == ("%h/.local/bin/jmapfs", "watch")
    config = tmp_path / "notmuch-config"
    config.write_text(
        f"[database]\npath={tmp_path}\nmail_root={mount.path}\n"
        "[new]\nignore=.jmapfs.json\n[maildir]\nsynchronize_flags=false\n"
    )
    variables = {"NOTMUCH_CONFIG": str(config)}

    def found() -> list[str]:
        files = command("notmuch", "search", "--output=files", "subject:zebra", **variables)
        return [Path(file).parent.name for file in files.splitlines()]

    def assert_found(*directories: str) -> None:
        mount.sync()
        wait_until(lambda: found() == [*directories])

    with Watch(mount.home, *arguments[1:], variables=variables):
        raw = text_mail(0).replace(b"mail 0", b"zebra\r\nMessage-ID: <zebra@example.org>")
        email = control.add_email(raw, ["Inbox"], received_at=received_at(0))
        assert_found("Inbox")
        control.move_email(email, "Inbox", "Work")
        assert_found("Work")
        control.destroy_email(email)
        assert_found()


def test_mistakes(mount: Mounted, tmp_path: Path) -> None:
    for arguments, code, words in (
        ([tmp_path], 10, "jmapfs is not mounted there"),
        ([mount.path / "Nothing"], 2, "there is no such directory"),
        ([mount.path, "--", "no-such-program"], 2, "there is no such program"),
    ):
        result = mount.home.run("watch", *arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert words in result.stderr
