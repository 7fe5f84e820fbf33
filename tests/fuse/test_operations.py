"""The operations without a mount: requests of the kernel, and their answers."""

from __future__ import annotations

import errno
import logging
import sqlite3
import stat
from dataclasses import replace
from typing import Any

import pyfuse3
import pytest

from jmapfs.errors import (
    BlobMismatchError,
    BusyError,
    ConfigError,
    DeadlineError,
    EntryNotFoundError,
    JmapfsError,
    StorageError,
)
from jmapfs.fuse.operations import MailOperations
from jmapfs.index.rows import AccountState
from jmapfs.inodes import ROOT_INODE, STATUS_FILE_INODE
from tests.fuse.setting import CONTEXT, COUNT, FLAGS, ROOT, Kernel, Setting, name


def failing_with(number: int) -> Any:
    return pytest.raises(pyfuse3.FUSEError, check=lambda error: error.errno == number)


@pytest.mark.parametrize("room", [1, 7, 64, 10_000])
async def test_a_directory_is_read_in_parts_of_any_size(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    kernel = Kernel(setting.operations, monkeypatch)
    inbox = await setting.inode(b"Inbox")
    entries = await kernel.list(inbox, room)
    assert [entry for entry, _ in entries] == sorted([b"0-Sub", *map(name, range(COUNT))])
    for entry_name, attributes in entries:
        looked_up = await setting.operations.lookup(inbox, entry_name, CONTEXT)
        assert attributes.__getstate__() == looked_up.__getstate__()
        by_inode = await setting.operations.getattr(looked_up.st_ino, CONTEXT)
        assert by_inode.__getstate__() == looked_up.__getstate__()
    root = [entry for entry, _ in await kernel.list(ROOT, room)]
    assert root[:2] == [b".jmapfs.json", b"Inbox"]
    assert len(root) == 3


async def test_a_listing_does_not_change_while_it_is_read(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(setting.operations, monkeypatch)
    inbox = await setting.inode(b"Inbox")
    handle = await kernel.open(inbox)
    with setting.writing() as writer:
        writer.remove_emails([f"M{number}" for number in range(COUNT)])
    assert len(await kernel.read(handle)) == COUNT + 1
    await setting.operations.releasedir(handle)
    assert [entry for entry, _ in await kernel.list(inbox, 10)] == [b"0-Sub"]
    assert setting.operations._directories == {}


async def test_attributes(setting: Setting) -> None:
    entry = await setting.operations.getattr(await setting.inode(b"Inbox", name(7)), CONTEXT)
    assert entry.st_mode == stat.S_IFREG | 0o440
    assert (entry.st_uid, entry.st_gid, entry.st_nlink) == (12, 34, 2)
    assert (entry.st_size, entry.st_blocks) == (1007, 2)
    when = (1_700_000_000 + 7) * 10**9
    assert (entry.st_mtime_ns, entry.st_ctime_ns, entry.st_atime_ns) == (when, when, when)
    assert entry.entry_timeout >= 3600
    assert entry.attr_timeout >= 3600
    assert entry.st_ino == await setting.inode(b"Inbox", b"0-Sub", name(7))

    directory = await setting.operations.getattr(await setting.inode(b"Inbox"), CONTEXT)
    assert directory.st_mode == stat.S_IFDIR | 0o750
    assert directory.st_nlink == 3
    assert (await setting.operations.getattr(ROOT, CONTEXT)).st_ino == ROOT_INODE


@pytest.mark.parametrize("missing", [b"nothing", b"...", b"\xff\xfe", b"M0001.EML", b"x" * 300])
async def test_unknown_names(setting: Setting, missing: bytes) -> None:
    for directory in (ROOT, await setting.inode(b"Inbox")):
        entry = await setting.operations.lookup(directory, pyfuse3.FileNameT(missing), CONTEXT)
        assert entry.st_ino == 0
        # Only for a moment: a new name may not be announced to the kernel.
        assert 0 < entry.entry_timeout <= 5


async def test_dots(setting: Setting) -> None:
    async def lookup(inode: int, name: bytes) -> int:
        found = pyfuse3.InodeT(inode), pyfuse3.FileNameT(name), CONTEXT
        return (await setting.operations.lookup(*found)).st_ino

    inbox, sub = await setting.inode(b"Inbox"), await setting.inode(b"Inbox", b"0-Sub")
    mail = await setting.inode(b"Inbox", b"0-Sub", name(7))
    assert [await lookup(inode, b".") for inode in (ROOT, sub, mail)] == [ROOT, sub, mail]
    assert [await lookup(inode, b"..") for inode in (ROOT, inbox, sub)] == [ROOT, ROOT, inbox]


async def test_unknown_inodes(setting: Setting) -> None:
    nowhere = pyfuse3.InodeT(12345)
    for attempt in (
        setting.operations.getattr(nowhere, CONTEXT),
        setting.operations.open(nowhere, FLAGS, CONTEXT),
        setting.operations.opendir(nowhere, CONTEXT),
    ):
        with failing_with(errno.ENOENT):
            await attempt
    assert not setting.content.held


async def test_reading(setting: Setting) -> None:
    operations, content = setting.operations, setting.content
    inode = await setting.inode(b"Inbox", name(5))
    opened = await setting.open(inode)
    assert opened.keep_cache
    assert not opened.direct_io
    assert not content.reads
    assert bytes(await operations.read(opened.fh, 0, 4096)) == b"x" * 1005
    assert bytes(await operations.read(opened.fh, 1000, 4096)) == b"x" * 5
    assert content.reads == [("b5", 1005, 0, 4096), ("b5", 1005, 1000, 4096)]
    await operations.release(opened.fh)
    assert content.held["b5"] == 0
    assert len(content.reads) == 2


async def test_a_blob_is_held_from_the_first_read_to_the_last_release(setting: Setting) -> None:
    operations, held = setting.operations, setting.content.held
    inode = await setting.inode(b"Inbox", name(7))
    same = await setting.inode(b"Inbox", b"0-Sub", name(7))
    handles = [(await setting.open(each)).fh for each in (inode, same, inode)]
    unread = await setting.open(await setting.inode(b"Inbox", name(8)))
    assert not held
    for _ in range(2):
        assert bytes(await operations.read(handles[0], 0, 1)) == b"x"
        assert held == {"b7": 1}
    for handle in handles[:2]:
        await operations.release(handle)
    assert held == {"b7": 1}
    assert bytes(await operations.read(handles[2], 0, 1)) == b"x"
    assert held == {"b7": 1}
    await operations.release(handles[2])
    await operations.release(unread.fh)
    assert not +held
    assert operations._open == {}


async def test_an_open_file_outlives_its_mail(setting: Setting) -> None:
    operations = setting.operations
    inode = await setting.inode(b"Inbox", name(5))
    opened = await setting.open(inode)
    with setting.writing() as writer:
        writer.remove_emails(["M5"])
    assert bytes(await operations.read(opened.fh, 0, 4096)) == b"x" * 1005
    assert (await operations.getattr(inode, CONTEXT)).st_nlink == 0
    await operations.release(opened.fh)
    operations.start_generation()
    with failing_with(errno.ENOENT):
        await setting.open(inode)


async def test_a_corrected_size_applies_from_the_next_open(setting: Setting) -> None:
    """An open file keeps its wrong size, so its content must not be returned."""
    operations, content = setting.operations, setting.content
    inode = await setting.inode(b"Inbox", name(5))
    opened = await setting.open(inode)
    with setting.writing() as writer:
        writer.correct_size("b5", 2000)
    content.error = BlobMismatchError("another size")
    with failing_with(errno.EIO):
        await operations.read(opened.fh, 0, 10)
    assert content.reads[-1] == ("b5", 1005, 0, 10)
    content.error = None
    again = await setting.open(inode)
    assert bytes(await operations.read(again.fh, 1990, 100)) == b"x" * 10
    assert content.reads[-1] == ("b5", 2000, 1990, 100)
    for each in (opened, again):
        await operations.release(each.fh)


async def test_open_is_refused_while_the_kernel_has_another_epoch(setting: Setting) -> None:
    """The names of the tree may be new already, and the kernel's pages old."""
    inode = await setting.inode(b"Inbox", name(5))
    opened = await setting.open(inode)
    with setting.writing() as writer:
        writer.set_state(replace(writer.state(), epoch="e2"))
    with failing_with(errno.EIO):
        await setting.open(inode)
    status_file = await setting.open(await setting.inode(b".jmapfs.json"))
    setting.content.epoch = "e2"
    again = await setting.open(inode)
    for each in (opened, status_file, again):
        await setting.operations.release(each.fh)


async def test_a_refused_content_is_not_downloaded_for_each_read(setting: Setting) -> None:
    """The kernel repeats a READ that failed, and programs read on. A new open tries again."""
    operations, content = setting.operations, setting.content
    opened = await setting.open(await setting.inode(b"Inbox", name(5)))
    content.error = BlobMismatchError("the server sent a web page")
    for offset in (0, 0, 10):
        with failing_with(errno.EIO):
            await operations.read(opened.fh, offset, 10)
    assert len(content.reads) == 1
    content.error = None
    again = await setting.open(opened.fh)
    assert len(await operations.read(again.fh, 0, 10)) == 10
    for each in (opened, again):
        await operations.release(each.fh)


async def test_the_content_that_was_held_is_released(setting: Setting) -> None:
    """Its key is another one after a reset."""
    operations, content = setting.operations, setting.content
    inode = await setting.inode(b"Inbox", name(5))
    opened = await setting.open(inode)
    content.error = BlobMismatchError("another size")
    with failing_with(errno.EIO):
        await operations.read(opened.fh, 0, 10)
    with setting.writing() as writer:
        writer.set_state(replace(writer.state(), epoch="e2"))
    content.error, content.epoch = None, "e2"
    again = await setting.open(inode)
    for each in (opened, again):
        await operations.release(each.fh)
    assert not +content.held


async def test_the_status_file(setting: Setting) -> None:
    operations = setting.operations
    entry = await operations.lookup(ROOT, pyfuse3.FileNameT(b".jmapfs.json"), CONTEXT)
    assert entry.st_ino == STATUS_FILE_INODE
    first, second = [await setting.open(entry.st_ino) for _ in range(2)]
    assert not first.keep_cache
    assert first.fh != second.fh
    content = await operations.read(first.fh, 0, 100_000)
    assert len(content) == entry.st_size
    with setting.writing() as writer:
        writer.set_state(AccountState(account_id="A", account_name="somebody else"))
    # As it was when it was opened, to the last piece.
    assert await operations.read(second.fh, 0, 100_000) == content
    assert await operations.read(second.fh, 5, 10) == content[5:15]
    third = await setting.open(entry.st_ino)
    assert b"somebody else" in await operations.read(third.fh, 0, 100_000)
    for opened in (first, second, third):
        await operations.release(opened.fh)
    assert operations._status_files == {}
    assert not setting.content.held


async def test_statistics(setting: Setting) -> None:
    statistics = await setting.operations.statfs(CONTEXT)
    size = sum(1000 + number for number in range(COUNT))
    assert statistics.f_files == COUNT
    assert 0 <= statistics.f_blocks * statistics.f_frsize - size < statistics.f_frsize
    assert (statistics.f_bfree, statistics.f_bavail, statistics.f_ffree) == (0, 0, 0)
    assert statistics.f_namemax == 255


@pytest.mark.parametrize(
    ("error", "number", "level"),
    [
        (DeadlineError("late"), errno.EIO, logging.WARNING),
        (BlobMismatchError("other bytes"), errno.EIO, logging.WARNING),
        (StorageError("full"), errno.EIO, logging.WARNING),
        (BusyError("busy"), errno.EBUSY, logging.WARNING),
        (ConfigError("wrong"), errno.EINVAL, logging.WARNING),
        (EntryNotFoundError("gone"), errno.ENOENT, None),
        (JmapfsError("something"), errno.EIO, logging.WARNING),
        (sqlite3.DatabaseError("malformed"), errno.EIO, logging.ERROR),
        (pyfuse3.FUSEError(errno.ENOTDIR), errno.ENOTDIR, None),
        (ZeroDivisionError("a bug"), errno.EIO, logging.ERROR),
        (KeyError("a bug"), errno.EIO, logging.ERROR),
        (ExceptionGroup("bugs", [ValueError("a bug")]), errno.EIO, logging.ERROR),
    ],
)
async def test_only_fuse_errors_leave_a_handler(
    setting: Setting,
    error: Exception,
    number: int,
    level: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = await setting.open(await setting.inode(b"Inbox", name(5)))
    setting.content.error = error
    with caplog.at_level(logging.DEBUG), failing_with(number):
        await setting.operations.read(opened.fh, 0, 10)
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])
    is_bug = not isinstance(error, JmapfsError | sqlite3.Error | pyfuse3.FUSEError)
    assert ("Traceback" in caplog.text) == is_bug
    # Operations continue, with another mail: some failures are remembered for a moment.
    setting.content.error = None
    other = await setting.open(await setting.inode(b"Inbox", name(6)))
    assert bytes(await setting.operations.read(other.fh, 0, 2)) == b"xx"
    await setting.operations.release(other.fh)
    await setting.operations.release(opened.fh)


async def test_errors_of_the_tree(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    setting.tree.error = sqlite3.OperationalError("disk I/O error")
    with failing_with(errno.EIO):
        await setting.operations.lookup(ROOT, pyfuse3.FileNameT(b"Inbox"), CONTEXT)
    # A missing name is the one error that `lookup` has an answer for.
    setting.tree.error = EntryNotFoundError("no such name")
    entry = await setting.operations.lookup(ROOT, pyfuse3.FileNameT(b"Inbox"), CONTEXT)
    assert entry.st_ino == 0
    setting.tree.error = ZeroDivisionError("on purpose")
    with failing_with(errno.EIO):
        await setting.operations.lookup(ROOT, pyfuse3.FileNameT(b"Inbox"), CONTEXT)
    assert "disk I/O error" in caplog.text
    assert "ZeroDivisionError: on purpose" in caplog.text


async def test_an_unknown_handle_is_a_bug_and_eio(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    for attempt in (
        setting.operations.read(pyfuse3.FileHandleT(99), 0, 1),
        setting.operations.release(pyfuse3.FileHandleT(99)),
        setting.operations.releasedir(pyfuse3.FileHandleT(99)),
    ):
        with failing_with(errno.EIO):
            await attempt
    assert caplog.text.count("Traceback") == 3


async def test_operations_are_counted(setting: Setting) -> None:
    operations = setting.operations
    opened = await setting.open(await setting.inode(b"Inbox", name(1)))
    await operations.read(opened.fh, 0, 1)
    with failing_with(errno.ENOSYS):
        await operations.flush(opened.fh)
    await operations.release(opened.fh)
    await operations.forget([(ROOT, 1)])
    await operations.statfs(CONTEXT)
    with failing_with(errno.ENOENT):
        await operations.getattr(pyfuse3.InodeT(12345), CONTEXT)
    assert operations.counts == {
        "lookup": 2,
        "open": 1,
        "read": 1,
        "flush": 1,
        "release": 1,
        "forget": 1,
        "statfs": 1,
        "getattr": 1,
    }


@pytest.mark.parametrize(
    "operation",
    [
        *("write", "create", "unlink", "rename", "mkdir", "rmdir", "symlink", "link", "mknod"),
        *("setattr", "setxattr", "removexattr"),
    ],
)
def test_there_are_no_operations_that_write(operation: str) -> None:
    own = getattr(MailOperations, operation)
    assert own is getattr(pyfuse3.Operations, operation)
