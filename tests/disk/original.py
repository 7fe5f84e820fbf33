"""A small account with all kinds of files that jmapfs keeps, made once and copied for each case.

The commands run in this process, and each must end soon, with an exit code that is documented.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import click

from jmapfs.cli.main import cli
from jmapfs.errors import JmapfsError
from jmapfs.snapshot.manifest import read_description
from tests.mails import random_mail, text_mail
from tests.mounts import Home
from tests.server import ServerProcess, server_process

SECONDS = 20
LARGE = "Mlarge"
OTHER_USER = "games"
DOCUMENTED = {0, *range(2, 16)}


class Hanging(Exception):  # noqa: N818 - says what the command is
    """A command did not end."""


@dataclass(frozen=True)
class Outcome:
    """The exit code of a command and what it printed; `error` is the line of its error."""

    exit_code: int
    stdout: str
    stderr: str
    error: str = ""


@dataclass(frozen=True)
class Files:
    """A copy of the files: caches and logs in `home`, and two snapshots with all files in `dest`.

    `expected` is the SHA-256 of each mail of the account.
    """

    directory: Path
    server: ServerProcess
    expected: tuple[str, ...] = ()

    @property
    def home(self) -> Home:
        return Home(self.directory / "home", "alice@example.org", "secret")

    @property
    def dest(self) -> Path:
        return self.directory / "dest"

    @property
    def account(self) -> Path:
        """The directory of the account in the cache."""
        [directory] = [path.parent for path in self.home.cache.glob("*/index.sqlite")]
        return directory

    @property
    def dates(self) -> list[str]:
        return sorted(path.name for path in self.dest.iterdir() if path.name.startswith("2"))

    def run(self, *arguments: str | Path, environment: dict[str, str] | None = None) -> Outcome:
        """Run a command; its exit code must be documented, and its error one line."""
        stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
        code, line = 0, ""
        with (
            _environment(environment or self.home.environment),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            _deadline(SECONDS),
        ):
            try:
                command = [str(argument) for argument in arguments]
                code = cli.main(command, prog_name="jmapfs", standalone_mode=False) or 0
            except JmapfsError as error:
                code, line = error.exit_code, str(error)
            except click.ClickException as error:
                code, line = error.exit_code, error.format_message()
        outcome = Outcome(code, _text(stdout), _text(stderr), line)
        assert code in DOCUMENTED, outcome
        assert code == 0 or (line and len(line) < 600), outcome
        assert "Traceback" not in outcome.stdout + outcome.stderr, outcome
        return outcome

    def snapshot(self, *options: str) -> Outcome:
        return self.run("snapshot", *options, self.server.url, self.dest)

    def give_to(self, user: str) -> None:
        """Make another user the owner of everything."""
        owner = pwd.getpwnam(user)
        subprocess.run(
            ["chown", "-Rh", f"{owner.pw_uid}:{owner.pw_gid}", self.directory], check=True
        )

    def require_right(self, date: str) -> None:
        """Check that a snapshot is whole, and has each mail of the account as the server has it."""
        path = self.dest / date
        assert read_description(path).date == date
        found = [hashlib.sha256(one.read_bytes()).hexdigest() for one in path.rglob("*.eml")]
        assert tuple(sorted(found)) == self.expected
        assert self.run("verify", path).exit_code == 0


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


@contextlib.contextmanager
def original_files() -> Iterator[Files]:
    """Make the files: by a mount, two snapshots, and one that did not end."""
    # The directories of pytest are closed to other users.
    directory = Path(tempfile.mkdtemp(prefix="jmapfs-disk-"))
    directory.chmod(0o755)
    try:
        with server_process("empty") as server:
            files = Files(directory / "original", server)
            _make(files)
            yield replace(files, expected=_expected(server))
    finally:
        shutil.rmtree(directory)


def _make(files: Files) -> None:
    control, home = files.server.control, files.home
    files.directory.chmod(0o755)
    inbox = control.create_mailbox("Inbox", role="inbox")
    work = control.create_mailbox("Work")
    for number in range(6):
        control.add_email(text_mail(number, padding=40), [inbox], email_id=f"M{number}")
    control.add_email(random_mail(99, 3 << 20), [work], email_id=LARGE)
    with home.mounted(files.server.url) as mount:
        assert home.run("prefetch", mount.path).exit_code == 0
    _break(files)
    assert files.snapshot().exit_code == 0
    control.add_email(text_mail(6), [inbox], email_id="M6")
    control.add_email(text_mail(7), [work], email_id="M7")
    _break(files, "M7")
    os.utime(files.dest / files.dates[0])
    assert files.snapshot("--skip-bad").exit_code == 15
    control.add_email(text_mail(8), [work], email_id="M8")
    assert files.snapshot().exit_code == 15
    _break(files)
    assert len(files.dates) == 2
    assert files.run("verify", files.dest).exit_code == 0
    # The write-ahead logs are files too, and stay after a crash.
    for database in (files.account / "index.sqlite", files.account / "blobs/blobs.sqlite"):
        _leave_log(database)


def _expected(server: ServerProcess) -> tuple[str, ...]:
    control = server.control
    mails = (control.blob(email.blob_id) for email in control.dump().emails)
    return tuple(sorted(hashlib.sha256(mail).hexdigest() for mail in mails))


def _break(files: Files, *ids: str) -> None:
    control = files.server.control
    blobs = {email.id: email.blob_id for email in control.dump().emails}
    control.set_quirks(
        download_fault="not-found" if ids else None,
        blob_fault="not-found" if ids else None,
        fault_blob_ids=[blobs[one] for one in ids],
    )


def _leave_log(database: Path) -> None:
    """Write to a database without a change, in a process that does not close it."""
    program = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA wal_autocheckpoint = 0')\n"
        "n = c.execute('PRAGMA user_version').fetchone()[0]\n"
        "c.execute(f'PRAGMA user_version = {n + 1}')\n"
        "c.execute(f'PRAGMA user_version = {n}')\n"
        "os._exit(0)\n"
    )
    subprocess.run(["python3", "-c", program, database], check=True)
    assert Path(f"{database}-wal").stat().st_size


@contextlib.contextmanager
def copy_of(files: Files, name: str) -> Iterator[Files]:
    """Copy the files, with their hard links, for one case."""
    copy = replace(files, directory=files.directory.parent / name)
    subprocess.run(["cp", "-a", files.directory, copy.directory], check=True)
    try:
        yield copy
    finally:
        shutil.rmtree(copy.directory)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def ring(_number: int, frame: FrameType | None) -> None:
        raise Hanging(str(frame))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def effective_user(name: str) -> Iterator[None]:
    """Do the file accesses of this process as another user; only root can."""
    user = pwd.getpwnam(name)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
