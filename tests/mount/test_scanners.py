"""Tools that scan a mount again and again: each run finds what changed, and reads nothing else.

All tools scan one mount. Each test changes the account in every way, between its runs.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mails import fill_new_mailbox, text_mail
from tests.mounts import Counts, Home, Mounted, command
from tests.server import ControlClient, server_process
from tests.waits import wait_until
from tests.watcher import QUIET

pytestmark = pytest.mark.mount

STATUS_FILE = ".jmapfs.json"
MAILS = 10
MAILBOXES = {
    "Inbox": MAILS,
    "Work": MAILS,
    "Lists": 50,  # Each change takes two mails away.
    "Archive": MAILS,
    "Still": MAILS,
    "Box 0": MAILS,
    "New 0": 1,
}


@dataclass(frozen=True)
class Change:
    """The mails that appeared and disappeared, and the directories whose names changed, by path."""

    added: set[str]
    removed: set[str]
    directories: set[str]


@dataclass
class Scanned:
    """A mount and its account, which was changed `changes` times."""

    mount: Mounted
    control_url: str
    changes: int = 0

    def change(self) -> Change:
        """Change mails and mailboxes in every way, and sync."""
        before = set(self.mount.files())
        self.changes += 1
        one, number = self.changes, 1000 * self.changes
        # A client of its own: the connection of another one may have ended in the last test.
        with ControlClient(self.control_url) as control:
            ids = {box.name: box.id for box in control.dump().mailboxes}
            control.add_email(text_mail(number), [ids["Inbox"]], received_at="2026-01-01T00:00:00Z")
            control.add_email(
                text_mail(number + 1), [ids["Work"]], received_at="2001-02-03T04:05:06Z"
            )
            mails = control.dump().emails_in(ids["Lists"])
            control.move_email(mails[0].id, ids["Lists"], ids["Archive"])
            control.destroy_email(mails[1].id)
            fill_new_mailbox(control, [text_mail(number + 2)], f"New {one}")
            control.rename_mailbox(ids[f"Box {one - 1}"], f"Box {one}")
            [mail] = control.dump().emails_in(ids[f"New {one - 1}"])
            control.destroy_email(mail.id)
            control.destroy_mailbox(ids[f"New {one - 1}"])
        self.mount.sync()
        after = set(self.mount.files())
        assert len(after - before) == 4 + MAILS
        return Change(
            after - before,
            before - after,
            {"", "Inbox", "Work", "Lists", "Archive", f"New-{one}"},
        )

    def drop_pages(self) -> Counts:
        """Have the kernel forget all content, so that each read is a READ; return the counts."""
        for path in self.mount.files():
            descriptor = os.open(self.mount.path / path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        return self.mount.counts()

    def assert_read(self, before: Counts, files: set[str]) -> None:
        """Check that not more than these files and `.jmapfs.json` were read, each once."""
        done = self.mount.counts() - before
        # Content, and sometimes the end of the file. Read-ahead can save READs.
        assert done.reads <= 2 * len(files | {STATUS_FILE})

    def assert_finds_each_change(self, back_up: Callable[[], set[str]]) -> None:
        """Check that each run returns the files that are new since the run before it."""
        assert back_up() == set(self.mount.files())
        for changes in (False, True, True, False):
            added = self.change().added if changes else set()
            before = self.drop_pages()
            assert back_up() == added
            self.assert_read(before, added)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scanned]:
    with ExitStack() as stack:
        server = stack.enter_context(server_process("empty"))
        control = server.control
        for number, (name, count) in enumerate(MAILBOXES.items()):
            mails = [text_mail(100 * number + each) for each in range(count)]
            fill_new_mailbox(control, mails, name)
        home = Home(tmp_path_factory.mktemp("scanned"), "alice@example.org", "secret")
        mount = stack.enter_context(home.mounted(server.url, *QUIET))
        yield Scanned(mount, control.url)


def lines(text: str) -> set[str]:
    return set(text.splitlines())


def differences(one: Path, other: Path) -> list[str]:
    compared = subprocess.run(
        ["diff", "-qr", f"--exclude={STATUS_FILE}", one, other], capture_output=True, check=False
    )
    return compared.stdout.decode().splitlines()


def test_notmuch_finds_each_change(scanned: Scanned, tmp_path: Path) -> None:
    root = scanned.mount.path
    configuration = tmp_path / "config"
    configuration.write_text(
        f"[database]\npath={tmp_path / 'database'}\nmail_root={root}\n"
        "[new]\nignore=.jmapfs.json\n[maildir]\nsynchronize_flags=false\n"
    )
    (tmp_path / "database").mkdir()

    def notmuch(*arguments: str) -> str:
        return command("notmuch", *arguments, NOTMUCH_CONFIG=str(configuration))

    def indexed() -> set[str]:
        files = lines(notmuch("search", "--output=files", "--exclude=false", "*"))
        return {str(Path(file).relative_to(root)) for file in files}

    notmuch("new")
    assert indexed() == set(scanned.mount.files())
    before = scanned.drop_pages()
    assert "No new mail." in notmuch("new")
    scanned.assert_read(before, set())
    for _ in range(2):
        change = scanned.change()
        before = scanned.drop_pages()
        notmuch("new")
        assert indexed() == set(scanned.mount.files())
        assert (scanned.mount.counts() - before).fuse["open"] <= 2 * len(change.added)
        scanned.assert_read(before, change.added)
    before = scanned.drop_pages()
    assert "No new mail." in notmuch("new")
    scanned.assert_read(before, set())


def test_find_newer_finds_each_change(scanned: Scanned, tmp_path: Path) -> None:
    root = scanned.mount.path
    stamp = tmp_path / "stamp"

    def newer() -> set[str]:
        found = lines(command("find", root, "-type", "d", "-newer", stamp))
        return {str(Path(path).relative_to(root)).removeprefix(".") for path in found}

    def is_newest() -> bool:
        # Times are rounded up, so for a second, the last change is newer than a new file.
        stamp.touch()
        times = [status.st_mtime for status in scanned.mount.entries().values()]
        return stamp.stat().st_mtime > max(times)

    for _ in range(3):
        wait_until(is_newest)
        assert newer() == set()
        change = scanned.change()
        assert newer() == change.directories


def test_incremental_tar_archives_each_change(scanned: Scanned, tmp_path: Path) -> None:
    root, copy = scanned.mount.path, tmp_path / "copy"
    copy.mkdir()
    archives: list[Path] = []

    def archive() -> set[str]:
        archives.append(tmp_path / f"{len(archives)}.tar")
        command("tar", "-cf", archives[-1], "-g", tmp_path / "snapshot", "-C", root, ".")
        names = command("tar", "-tf", archives[-1]).splitlines()
        files = {name.removeprefix("./") for name in names if not name.endswith("/")}
        return files - {STATUS_FILE}

    scanned.assert_finds_each_change(archive)
    for one in archives:
        command("tar", "-xf", one, "-g", os.devnull, "-C", copy)
    assert differences(root, copy) == []


def test_rsync_copies_each_change(scanned: Scanned, tmp_path: Path) -> None:
    root, copy = scanned.mount.path, tmp_path / "copy"

    def synchronize() -> tuple[set[str], set[str], set[str]]:
        """Return which files were copied or deleted, and which directories were set."""
        output = command("rsync", "-aHi", "--delete", f"{root}/", copy).splitlines()
        copied = {line[12:] for line in output if line.startswith(">f")}
        deleted = {line[12:] for line in output if line.startswith("*deleting")}
        directories = {line[12:] for line in output if line[:2] in {"cd", ".d"}}
        return copied - {STATUS_FILE}, {path for path in deleted if path[-1] != "/"}, directories

    copied, deleted, _ = synchronize()
    assert (copied, deleted) == (set(scanned.mount.files()), set())
    before = scanned.drop_pages()
    assert synchronize() == (set(), set(), set())
    scanned.assert_read(before, set())
    for _ in range(2):
        change = scanned.change()
        before = scanned.drop_pages()
        copied, deleted, directories = synchronize()
        assert (copied, deleted) == (change.added, change.removed)
        renamed = {path.partition("/")[0] for path in change.added if path.startswith("Box-")}
        expected = change.directories | renamed
        assert directories == {f"{path}/" if path else "./" for path in expected}
        scanned.assert_read(before, change.added)
    before = scanned.drop_pages()
    assert synchronize() == (set(), set(), set())
    scanned.assert_read(before, set())
    assert differences(root, copy) == []


def test_restic_reads_each_change(scanned: Scanned, tmp_path: Path) -> None:
    root, repository = scanned.mount.path, tmp_path / "repository"

    def restic(*arguments: str | Path) -> str:
        return command(
            "restic",
            *("--no-cache", "--repo", repository, *arguments),
            RESTIC_PASSWORD="secret",
            HOME=str(tmp_path),
        )

    def back_up() -> set[str]:
        """Return which files were new or changed."""
        found = set()
        for line in restic("backup", "--json", "--verbose=2", root).splitlines():
            event = json.loads(line)
            # The items of directories end in a slash.
            if event.get("action") in {"new", "modified"} and event["item"][-1] != "/":
                found.add(str(Path(event["item"]).relative_to(root)))
        return found - {STATUS_FILE}

    restic("init")
    scanned.assert_finds_each_change(back_up)
    restic("restore", "latest", "--target", tmp_path / "restored")
    assert differences(root, tmp_path / "restored" / root.relative_to("/")) == []


def test_borg_reads_each_change(scanned: Scanned, tmp_path: Path) -> None:
    root, repository = scanned.mount.path, tmp_path / "repository"
    archives: list[str] = []

    def borg(*arguments: str | Path) -> str:
        # The list of files is on stderr.
        return command(
            *("sh", "-c", 'exec borg "$@" 2>&1', "borg", *arguments),
            BORG_BASE_DIR=str(tmp_path / "borg"),
            BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes",
        )

    def back_up() -> set[str]:
        """Return which files were added or modified."""
        archives.append(f"{repository}::{len(archives)}")
        listing = borg("create", "--noflags", "--list", "--filter=AM", archives[-1], root)
        paths = {Path("/", line[2:]).relative_to(root) for line in listing.splitlines()}
        return set(map(str, paths)) - {STATUS_FILE}

    borg("init", "-e", "none", repository)
    scanned.assert_finds_each_change(back_up)
    archive = tmp_path / "archive.tar"
    borg("export-tar", archives[-1], archive)
    (tmp_path / "restored").mkdir()
    command("tar", "-xf", archive, "-C", tmp_path / "restored")
    assert differences(root, tmp_path / "restored" / root.relative_to("/")) == []
