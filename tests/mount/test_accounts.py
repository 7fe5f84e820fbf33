"""Several accounts of one user: one of them mounted, or all of them side by side."""

from __future__ import annotations

import json
import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.mails import received_at, text_mail
from tests.mounts import Home, Mounted, assert_refused, command, fixed
from tests.server import ControlClient, ServerProcess, server_process

pytestmark = pytest.mark.mount

OWN, TEAM = "alice@example.org", "The Team"
OWN_DIRECTORY, TEAM_DIRECTORY = "alice@example.org", "The-Team"
BOTH = range(4)


def fill(control: ControlClient, numbers: range) -> None:
    """Two mailboxes with mail; the first mail of `BOTH` is in both."""
    inbox = control.create_mailbox("Inbox", mailbox_id="Inbox")
    work = control.create_mailbox("Work", mailbox_id="Work")
    for number in numbers:
        boxes = [inbox, work] if number == BOTH[0] else [inbox]
        control.add_email(text_mail(number), boxes, received_at=received_at(number))


def at(control: ControlClient, number: int) -> None:
    control.add_email(text_mail(number), ["Inbox"], received_at=received_at(number))


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """Alice's account and one that is shared with her; the mails of `BOTH` are in both."""
    with server_process("empty") as server:
        fill(server.control, range(8))
        server.control.add_account("Ateam", TEAM)
        with closing(server.control.account("Ateam")) as team:
            fill(team, range(4))
            for number in range(20, 23):
                at(team, number)
        yield server


@pytest.fixture
def team(server: ServerProcess) -> Iterator[ControlClient]:
    with closing(server.control.account("Ateam")) as control:
        yield control


OWN_MAILS = sorted([text_mail(0), *map(text_mail, range(8))])
TEAM_MAILS = sorted([text_mail(0), *map(text_mail, (*range(4), *range(20, 23)))])


def about(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((path / ".jmapfs.json").read_bytes())
    return document


def everything(mount: Mounted) -> dict[str, tuple[int, ...]]:
    """Return what never changes of all that is in the mount but each account's `.jmapfs.json`."""
    return {
        path: fixed(status)
        for path, status in walk(mount).items()
        if not path.endswith(".jmapfs.json")
    }


def walk(mount: Mounted) -> dict[str, Any]:
    return {str(path.relative_to(mount.path)): path.lstat() for path in mount.path.rglob("*")}


def mails_of(mount: Mounted) -> dict[str, bytes]:
    return {path: (mount.path / path).read_bytes() for path in walk(mount) if path.endswith(".eml")}


def of(mount: Mounted, directory: str) -> list[bytes]:
    return sorted(data for path, data in mails_of(mount).items() if path.startswith(directory))


def test_accounts_are_listed(home: Home, server: ServerProcess) -> None:
    result = home.run("accounts", server.url)
    assert (result.exit_code, result.stderr) == (0, "")
    own, team = result.stdout.splitlines()[-2:]
    assert own.split() == [OWN, "Aprimary", "own"]
    assert team.split() == [*TEAM.split(), "Ateam", "shared"]
    documents = json.loads(home.run("accounts", "--json", server.url).stdout)
    assert documents == [
        {"id": "Aprimary", "name": OWN, "personal": True, "read_only": False},
        {"id": "Ateam", "name": TEAM, "personal": False, "read_only": False},
    ]


@pytest.mark.parametrize("selection", [TEAM, "Ateam", TEAM.upper()])
def test_any_account_of_the_user_can_be_mounted(
    home: Home, server: ServerProcess, selection: str
) -> None:
    with home.mounted(server.url, "--account", selection) as mount:
        assert sorted(mount.contents().values()) == TEAM_MAILS
        assert {path.parts[0] for path in map(Path, mount.files())} == {"Inbox", "Work"}
        assert about(mount.path)["account_id"] == "Ateam"
        assert mount.status()["account"] == TEAM


def test_an_unknown_account_is_refused(home: Home, server: ServerProcess) -> None:
    (home.directory / "mnt").mkdir()
    result = home.run("mount", "--account", "nobody", server.url, home.directory / "mnt")
    assert_refused(result, home, 3, "nobody", f"Aprimary ({OWN})", f"Ateam ({TEAM})")


def test_all_accounts_are_mounted_side_by_side(
    home: Home, server: ServerProcess, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    began = int(time.time())
    with home.mounted(server.url, "--all-accounts") as mount:
        assert {path.name for path in mount.path.iterdir()} == {OWN_DIRECTORY, TEAM_DIRECTORY}
        found = walk(mount)
        before = everything(mount)
        root = fixed(mount.path.stat())
        assert began <= mount.path.stat().st_mtime <= time.time()
        assert of(mount, OWN_DIRECTORY + "/") == OWN_MAILS
        assert of(mount, TEAM_DIRECTORY + "/") == TEAM_MAILS
        check_inodes(found)
        for directory, account_id, count in (
            (OWN_DIRECTORY, "Aprimary", 8),
            (TEAM_DIRECTORY, "Ateam", 7),
        ):
            described = about(mount.path / directory)
            assert (described["account_id"], described["emails"]) == (account_id, count)
            assert described["online"] is True
        check_status(mount)

        command("rsync", "-aH", f"{mount.path}/", target)
        reads = mount.status()["fuse"].get("read", 0)
        command("rsync", "-aH", f"{mount.path}/", target)
        assert mount.status()["fuse"].get("read", 0) == reads
        copied = {
            str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*.eml")
        }
        assert copied == mails_of(mount)
        # A hard link stays within its account.
        links = Counter(path.stat().st_ino for path in target.rglob("*.eml"))
        assert sorted(links.values()) == [1] * 13 + [2, 2]

    with home.mounted(server.url, "--all-accounts") as mount:
        assert everything(mount) == before
        assert fixed(mount.path.stat()) == root
        command("rsync", "-aH", f"{mount.path}/", target)
        assert mount.status()["fuse"].get("read", 0) == 0

    # Without the server it is the same once more.
    server.stop()
    with home.mounted(server.url, "--all-accounts") as mount:
        assert "showing the accounts that are known" in mount.result.stderr
        assert everything(mount) == before
        assert fixed(mount.path.stat()) == root
        assert of(mount, TEAM_DIRECTORY + "/") == TEAM_MAILS
        assert mount.status()["online"] is False
        for directory in (OWN_DIRECTORY, TEAM_DIRECTORY):
            assert about(mount.path / directory)["online"] is False


def check_inodes(found: dict[str, Any]) -> None:
    """One inode is one mail of one account, and has as many names as its link count says."""
    names: dict[int, list[str]] = {}
    for path, status in found.items():
        names.setdefault(status.st_ino, []).append(path)
    several = {inode: paths for inode, paths in names.items() if len(paths) > 1}
    assert len(several) == 2
    for paths in several.values():
        assert {Path(path).parts[1] for path in paths} == {"Inbox", "Work"}
        assert len({Path(path).parts[0] for path in paths}) == 1
    for path, status in found.items():
        if stat.S_ISREG(status.st_mode):
            assert status.st_nlink == len(names[status.st_ino]), path
    twins = [path for path in found if path.startswith(OWN_DIRECTORY) and path.endswith(".eml")]
    shared = [path for path in twins if path.replace(OWN_DIRECTORY, TEAM_DIRECTORY) in found]
    # Same blob, same second, same name; another file.
    assert len(shared) == len(BOTH) + 1
    for path in shared:
        assert found[path].st_ino != found[path.replace(OWN_DIRECTORY, TEAM_DIRECTORY)].st_ino


def check_status(mount: Mounted) -> None:
    status = mount.status()
    assert status["online"] is True
    assert {(one["account"], one["account_id"], one["emails"]) for one in status["accounts"]} == {
        (OWN, "Aprimary", 8),
        (TEAM, "Ateam", 7),
    }
    assert all(one["online"] and one["leads"] for one in status["accounts"])
    shown = mount.home.run("status", mount.path).stdout
    assert OWN in shown
    assert TEAM in shown


def test_each_account_follows_its_own_changes(
    home: Home, server: ServerProcess, team: ControlClient
) -> None:
    with home.mounted(server.url, "--all-accounts", "--poll-interval", "3600") as mount:
        own_inbox, team_inbox = (
            mount.path / directory / "Inbox" for directory in (OWN_DIRECTORY, TEAM_DIRECTORY)
        )
        before = everything(mount)
        assert home.run("freeze", mount.path).exit_code == 0
        at(server.control, 40)
        at(team, 41)
        team.rename_mailbox("Work", "Play")
        gone = next(email.id for email in team.dump().emails if email.subject == "mail 21")
        team.destroy_email(gone)
        assert home.run("sync", mount.path).exit_code == 0
        assert everything(mount) == before
        assert mount.status()["frozen"]

        assert home.run("thaw", mount.path).exit_code == 0
        assert len(list(own_inbox.iterdir())) == 9
        assert sorted(path.read_bytes() for path in team_inbox.iterdir()) == sorted(
            map(text_mail, (*range(4), 20, 22, 41))
        )
        assert {path.name for path in team_inbox.parent.iterdir()} == {
            "Inbox",
            "Play",
            ".jmapfs.json",
        }
        # In the other account only the new mail is different.
        after = everything(mount)
        untouched = {p for p in before if p.startswith(OWN_DIRECTORY) and p.endswith(".eml")}
        assert {path: after[path] for path in untouched} == {p: before[p] for p in untouched}
        at(team, 42)
        assert home.run("sync", mount.path).exit_code == 0
        assert len(list(team_inbox.iterdir())) == 8


def test_hostile_names(home: Home) -> None:
    names = ["a/b", "..", ".", "twin", "twin", "Twin", "", "-rf", ".jmapfs.json", "x.eml", "\u202e"]
    with server_process("empty") as server:
        server.control.create_mailbox("Inbox", mailbox_id="Inbox")
        at(server.control, 0)
        for number, name in enumerate(names, 1):
            account_id = f"A{number}"
            server.control.add_account(account_id, name)
            with closing(server.control.account(account_id)) as control:
                control.create_mailbox("Inbox", mailbox_id="Inbox")
                at(control, number)
        with home.mounted(server.url, "--all-accounts") as mount:
            directories = list(mount.path.iterdir())
            assert len(directories) == len(names) + 1
            assert len({path.name.casefold() for path in directories}) == len(directories)
            assert all(path.resolve().parent == mount.path for path in directories)
            assert not any(path.name[0] in ".-" for path in directories)
            ids = {about(path)["account_id"] for path in directories}
            assert ids == {"Aprimary", *(f"A{number}" for number in range(1, len(names) + 1))}
            for path in directories:
                number = int(about(path)["account_id"].removeprefix("A").replace("primary", "0"))
                (only,) = (path / "Inbox").iterdir()
                assert only.read_bytes() == text_mail(number)
            before = everything(mount)
        with home.mounted(server.url, "--all-accounts") as mount:
            assert everything(mount) == before
