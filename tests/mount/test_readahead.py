"""Reading ahead through a real mount: what programs cause by reading, and by only looking."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from jmapfs.daemon.accounts import AccountInodes, AccountPageCache
from jmapfs.fuse.page_cache import KernelEpoch, PageCacheWriter
from jmapfs.index.reader import IndexReader
from tests import corpus
from tests.bench.proxy import delayed
from tests.cyrus import Account, Message
from tests.mails import fill_new_mailbox, random_mail
from tests.mounts import Home, Mounted, command
from tests.server import NewEmail, ServerProcess
from tests.waits import wait_until

pytestmark = pytest.mark.mount

_START = datetime(2003, 1, 1, tzinfo=UTC)
_MANY = 1000


@pytest.fixture(scope="module")
def large(fresh_account: Callable[[], Account]) -> Account:
    """A thousand mails in the inbox, and 60 in each of two other mailboxes."""
    account = fresh_account()
    mails = iter(list(dict.fromkeys(corpus.mails(_MANY + 120))))
    for name, count in [("INBOX", _MANY), ("Few", 60), ("Others", 60)]:
        if name != "INBOX":
            account.create_mailbox(name)
        account.fill(
            name,
            [
                Message(next(mails), received=_START + timedelta(minutes=number))
                for number in range(count)
            ],
        )
    return account


@pytest.fixture
def mount(large: Account, tmp_path: Path) -> Iterator[Mounted]:
    with Home(tmp_path, large.name, large.password).mounted(large.url) as mount:
        yield mount


def grep(path: Path) -> None:
    """Read everything, as people do."""
    command("grep", "-rc", "^Subject: ", path)


def settled(mount: Mounted) -> None:
    """Return when nothing is being fetched any more."""
    seen = [-1]

    def quiet() -> bool:
        seen.append(mount.counts().blobs)
        return len(seen) > 4 and len(set(seen[-4:])) == 1

    wait_until(quiet)


def test_grep_fetches_everything_once_and_in_few_requests(mount: Mounted) -> None:
    before = mount.counts()
    grep(mount.path / "Inbox")
    settled(mount)
    done = mount.counts() - before
    assert done.blobs == _MANY
    assert done.http["requests"] <= 40
    # Mail that was read ahead needs no READ.
    assert done.reads < _MANY // 5
    assert mount.status()["pages"]["stored"] > _MANY // 2


def test_little_is_fetched_in_vain_for_a_reader_that_stops(mount: Mounted) -> None:
    command("tail", "-n", "1", *sorted((mount.path / "Inbox").iterdir())[:100])
    settled(mount)
    assert 100 <= mount.counts().blobs <= 400


def test_a_plain_grep_fetches_nothing_in_vain(mount: Mounted) -> None:
    grep(mount.path / "Others")
    grep(mount.path / "Few")
    settled(mount)
    assert mount.counts().blobs <= 120 * 6 // 5


@pytest.mark.parametrize("count", [1, 2])
def test_a_lone_head_fetches_nothing_ahead(mount: Mounted, count: int) -> None:
    names = sorted((mount.path / "Inbox").iterdir())[500 : 500 + count]
    command("head", "-n", "3", *names)
    settled(mount)
    assert mount.counts().blobs == count


def test_opening_files_fetches_nothing(mount: Mounted) -> None:
    for path in (mount.path / "Inbox").iterdir():
        os.close(os.open(path, os.O_RDONLY))
    settled(mount)
    assert mount.counts().blobs == 0


def test_only_files_that_borg_reads_are_fetched(large: Account, tmp_path: Path) -> None:
    variables = {
        "BORG_BASE_DIR": str(tmp_path / "borg"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }
    repository = tmp_path / "repository"
    command("borg", "init", "-e", "none", repository, **variables)
    home = Home(tmp_path / "home", large.name, large.password)
    with home.mounted(large.url) as mount:
        command("borg", "create", f"{repository}::1", mount.path, **variables)
        assert mount.counts().blobs == _MANY + 120
        assert mount.counts().reads < (_MANY + 120) // 2
    # Without a cache, what it fetched would be seen.
    with home.mounted(large.url, "--cache-size", "0") as mount:
        command("borg", "create", f"{repository}::2", mount.path, **variables)
        settled(mount)
        counts = mount.counts()
        assert counts.fuse["open"] > _MANY
        assert counts.blobs == 0


# The shell's `$1` is the directory.
_ORDERS = {
    "rg": 'rg -uu "no such words" "$1"; test $? = 1',
    "rg with 2 threads": 'rg -uu -j2 "no such words" "$1"; test $? = 1',
    "rg with 8 threads": 'rg -uu -j8 "no such words" "$1"; test $? = 1',
    "reversed cat": 'find "$1" -name "*.eml" -print0 | sort -rz | xargs -0 cat',
    "newest first": 'for each in "$1"/*/; do'
    ' ls -t "$each" | sed "s|^|$each|" | tr "\\n" "\\0" | xargs -0 cat; done',
    "fd -x": 'cd "$1" && fdfind -uu -t f -x cat',
    "fd -X": 'cd "$1" && fdfind -uu -t f -X cat',
    "xargs -P": 'find "$1" -name "*.eml" -print0 | xargs -0 -P 8 -n 100 cat',
    "tar": 'tar -C "$1" -cf - . | cat',
}


# How many requests they may need for each one of `grep -r`, by default 1.5. Each process of
# `xargs -P` has to be recognized. Many threads come to several directories and places at once.
_ALLOWED = {"rg with 8 threads": 2, "fd -x": 2, "fd -X": 2, "xargs -P": 3}


@pytest.fixture(scope="module")
def distant(large: Account) -> Iterator[Account]:
    """The same account, 20 ms away."""
    with delayed(large.http_port, seconds=0.02) as [port]:
        yield dataclasses.replace(large, http_port=port)


@pytest.fixture(scope="module")
def requests_of_grep(distant: Account, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many requests `grep -r` needs for the whole account."""
    home = Home(tmp_path_factory.mktemp("grep"), distant.name, distant.password)
    with home.mounted(distant.url) as mount:
        before = mount.counts()
        grep(mount.path)
        return (mount.counts() - before).http["requests"]


@pytest.mark.parametrize("order", _ORDERS)
def test_every_reading_order_needs_few_requests(
    distant: Account, tmp_path: Path, requests_of_grep: int, order: str
) -> None:
    """Programs that read everything, in any order and with any number of threads or processes."""
    home = Home(tmp_path, distant.name, distant.password)
    with home.mounted(distant.url) as mount:
        before = mount.counts()
        command("bash", "-c", _ORDERS[order], "bash", mount.path)
        done = mount.counts() - before
        assert done.blobs == _MANY + 120
        assert done.http["requests"] <= _ALLOWED.get(order, 1.5) * requests_of_grep


@pytest.mark.parametrize(
    ("selection", "most_requests"),
    [
        ("sed -zn '1~2p'", 1 / 5),
        ("sed -zn '1~5p'", 1 / 3),
        ("sort -zr", 1 / 10),
        ("sed -zn '1~10!p'", 1 / 5),
        # A pseudorandom half cannot be predicted.
        ("awk 'BEGIN { RS = ORS = \"\\0\"; srand(3) } rand() < 0.5'", 2),
    ],
)
def test_readers_that_skip_files_fetch_little_in_vain(
    mount: Mounted, tmp_path: Path, selection: str, most_requests: float
) -> None:
    names = tmp_path / "names"
    find = 'find "$1" -name "*.eml" -print0 | sort -z'
    command("bash", "-c", f'{find} | {selection} >"$2"', "bash", mount.path / "Inbox", names)
    wanted = [Path(os.fsdecode(name)) for name in names.read_bytes().split(b"\0") if name]
    assert wanted
    read = sum(path.stat().st_size for path in wanted)
    before = mount.counts()
    command("xargs", "-0", "-a", names, "cat")
    settled(mount)
    done = mount.counts() - before
    assert done.http["requests"] < most_requests * len(wanted)
    # The protocol adds little; a fifth may be in vain.
    assert done.http["bytes"] < read * 5 / 4


def test_mail_of_some_sizes_is_read_ahead(mount: Mounted) -> None:
    """`rg --max-filesize` skips large mail."""
    large = [path for path in (mount.path / "Inbox").iterdir() if path.stat().st_size > 4096]
    assert _MANY // 10 < len(large) < _MANY
    before = mount.counts()
    command(
        "bash", "-c", 'rg -uu --max-filesize 4K "no such words" "$1"; test $? = 1', "bash",
        mount.path / "Inbox",
    )  # fmt: skip
    settled(mount)
    done = mount.counts() - before
    assert done.http["requests"] < (_MANY - len(large)) // 3


def test_mail_in_a_large_cache_is_read_ahead(large: Account, tmp_path: Path) -> None:
    home = Home(tmp_path, large.name, large.password)
    with home.mounted(large.url) as mount:
        grep(mount.path)
    with home.mounted(large.url) as mount:
        grep(mount.path / "Inbox")
        counts = mount.counts()
        assert counts.blobs == 0
        assert counts.reads < _MANY // 5
        assert mount.status()["ahead"]["recalled"] > _MANY // 2


@pytest.mark.parametrize("number", [0, 3])
def test_a_file_that_is_stored_twice(number: int) -> None:
    """It may be twice in a directory, and so in a chunk."""
    pages = _Pages()
    inodes = AccountInodes(number)
    epoch = KernelEpoch("e1")
    reader = cast("IndexReader", SimpleNamespace(epoch=lambda: "e1"))
    cache = AccountPageCache(cast("PageCacheWriter", pages), inodes, reader, epoch, "e1")
    one, other = 5 << 29, 6 << 29
    assert cache.store([(one, b"one"), (one, b"one"), (other, b"other")]) == {other}
    assert pages.stored == [inodes.to_mount(inode) for inode in (one, one, other)]
    epoch.begin("e2")
    assert cache.store([(one, b"one")]) == {one}
    assert len(pages.stored) == 3


class _Pages:
    """Takes all but the last."""

    def __init__(self) -> None:
        self.stored: list[int] = []

    def store(self, files: Sequence[tuple[int, bytes]]) -> set[int]:
        self.stored += [inode for inode, _ in files]
        return {self.stored[-1]}


# --- What Cyrus cannot show


def fill(server: ServerProcess, count: int, size: int = 3000) -> dict[str, bytes]:
    """Put messages into a new mailbox `Box`; return them by their blob ids."""
    box = fill_new_mailbox(server.control, (random_mail(number, size) for number in range(count)))
    emails = server.control.dump().emails_in(box)
    return {email.blob_id: server.control.blob(email.blob_id) for email in emails}


@pytest.mark.parametrize("fault", ["not-found", "truncated", "null", "wrong-length", "wrong-bytes"])
def test_one_bad_blob_of_a_batch_costs_only_that(
    server: ServerProcess, home: Home, fault: str
) -> None:
    blobs = fill(server, 300)
    bad = sorted(blobs)[150]
    server.control.set_quirks(blob_fault=fault, fault_blob_ids=[bad])
    with home.mounted(server.url) as mount:
        contents = [path.read_bytes() for path in sorted((mount.path / "Box").iterdir())]
        # Wrong bytes cannot be detected if ids are no checksums; other faults are repaired.
        wrong = sorted(set(contents) - set(blobs.values()))
        assert len(wrong) == (1 if fault == "wrong-bytes" else 0)
        assert len(set(contents)) == 300
        counts = server.control.counts()
        # Again, alone, for what the batch did not bring; nothing else twice.
        again = 1 if fault == "wrong-bytes" else 2
        assert counts.blobs[bad] == again
        assert sum(counts.blobs.values()) == 299 + again
        assert counts.methods["Blob/get"] < 40


def test_without_blob_get_there_are_several_downloads_at_once(
    server: ServerProcess, home: Home
) -> None:
    blobs = fill(server, 200)
    server.control.set_quirks(blob_get=False, download_delay=0.02)
    with home.mounted(server.url) as mount:
        contents = {path.read_bytes() for path in (mount.path / "Box").iterdir()}
        assert contents == set(blobs.values())
    counts = server.control.counts()
    assert counts.methods["Blob/get"] == 0
    assert sum(counts.blobs.values()) == 200
    limit = server.control.quirks().max_concurrent_requests
    assert 3 <= counts.max_concurrent <= limit


def test_a_server_that_refuses_blob_get(server: ServerProcess, home: Home) -> None:
    blobs = fill(server, 200)
    server.control.set_quirks(
        method_faults=[{"method": "Blob/get", "error": "unknownMethod", "count": -1}]
    )
    with home.mounted(server.url) as mount:
        assert {path.read_bytes() for path in (mount.path / "Box").iterdir()} == set(blobs.values())
    counts = server.control.counts()
    assert counts.methods["Blob/get"] <= 3
    assert counts.endpoints["download"] == 200


def test_mail_that_is_deleted_while_it_is_read_ahead(server: ServerProcess, home: Home) -> None:
    fill(server, 400)
    server.control.set_quirks(request_delay=0.05)
    with home.mounted(server.url) as mount:
        paths = sorted((mount.path / "Box").iterdir())
        for path in paths[:20]:
            path.read_bytes()
        box = server.control.dump().mailbox("Box").id
        gone = [email.id for email in server.control.dump().emails_in(box)][100:300]
        server.control.destroy_emails(gone)
        mount.sync()
        left = sorted((mount.path / "Box").iterdir())
        assert len(left) == 200
        command("grep", "-rc", "Subject", mount.path / "Box")
        for path in set(paths) - set(left):
            with pytest.raises(FileNotFoundError):
                path.read_bytes()


def test_mail_that_is_twice_in_a_mailbox(server: ServerProcess, home: Home) -> None:
    """One inode under two names: it may be in a chunk twice."""
    box = server.control.create_mailbox("Box")
    contents = [f"Subject: {number // 2}\r\n\r\ntwice\r\n".encode() for number in range(200)]
    server.control.add_emails(
        [
            NewEmail(
                content, (box,), (), f"2024-03-01T00:{number // 120:02}:{number // 2 % 60:02}Z"
            )
            for number, content in enumerate(contents)
        ]
    )
    with home.mounted(server.url) as mount:
        paths = sorted((mount.path / "Box").iterdir())
        assert len({path.stat().st_ino for path in paths}) == 100
        assert sorted(path.read_bytes() for path in paths) == sorted(contents)
        settled(mount)
        assert mount.counts().blobs == 100


def test_unmounting_while_it_reads_ahead(server: ServerProcess, home: Home) -> None:
    fill(server, 600, size=20_000)
    server.control.set_quirks(request_delay=0.05)
    for _ in range(5):
        with home.mounted(server.url, "--cache-size", "0") as mount:
            for path in sorted((mount.path / "Box").iterdir())[:60]:
                path.read_bytes()
            mount.umount()
        server.control.reset_counts()
