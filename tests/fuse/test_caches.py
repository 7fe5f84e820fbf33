"""The caches of the operations: listings and records of files, and what makes them invalid.

Only `start_generation` and `show` tell the operations of a change: the index is changed by others,
as in a mount.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pyfuse3
import pytest

from jmapfs.errors import BlobMismatchError
from jmapfs.fuse.directory_cache import AttributeWriter, DirectoryCache
from jmapfs.index.rows import DirectoryRows
from jmapfs.inodes import STATUS_FILE_INODE
from jmapfs.tree.status_file import STATUS_FILE_NAME, Reachability
from jmapfs.tree.tree import DirectoryListing, Ownership
from tests.fuse.setting import CONTEXT, COUNT, ROOT, Kernel, NotedTree, Setting, email, name
from tests.indexed import mailbox, put_mailboxes

OFFLINE = Reachability(online=False, since=1_900_000_000.0, error="connection refused")


@pytest.fixture
def kernel(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(setting.operations, monkeypatch)


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all trees at the same version: they count by themselves, and may meet by chance."""
    monkeypatch.setattr(NotedTree, "version", lambda *_: 1)


@contextmanager
def frozen(setting: Setting) -> Iterator[tuple[NotedTree, NotedTree]]:
    """Have trees that stay as the index is now."""
    with setting.database.reader() as one, setting.database.reader() as other:
        one.pin()
        other.pin()
        reach = setting.reach
        yield NotedTree(one, lambda: reach), NotedTree(other, lambda: reach)


def names(entries: list[tuple[bytes, object]]) -> list[bytes]:
    return [each for each, _ in entries]


@pytest.mark.parametrize("room", [1, 7, 64, 255, 256, 257, 10_000])
async def test_an_unchanged_directory_is_listed_once(
    setting: Setting, kernel: Kernel, room: int
) -> None:
    inbox = await setting.inode(b"Inbox")
    first = await kernel.list(inbox, room)
    setting.operations.start_generation()
    second = await kernel.list(inbox, room)
    assert setting.listing_tree.listed == [inbox]
    assert names(second) == names(first) == sorted([b"0-Sub", *map(name, range(COUNT))])
    # The same attributes, made once.
    assert all(one is other for (_, one), (_, other) in zip(first, second, strict=True))
    for each, entry in second:
        looked_up = await setting.operations.lookup(inbox, pyfuse3.FileNameT(each), CONTEXT)
        assert entry.__getstate__() == looked_up.__getstate__()


async def test_a_cached_listing_is_read_from_any_position(setting: Setting, kernel: Kernel) -> None:
    handle = await kernel.open(await setting.inode(b"Inbox"))
    everything = sorted([b"0-Sub", *map(name, range(COUNT))])
    for position in (290, 3, COUNT, COUNT + 1, COUNT + 1000, 0):
        taken = await kernel.read(handle, position)
        assert [each for each, _, _ in taken] == everything[position:]
        assert [following for _, _, following in taken] == [
            *range(position + 1, len(everything) + 1)
        ]
    await setting.operations.releasedir(handle)


async def test_every_commit_is_listed(setting: Setting, kernel: Kernel) -> None:
    """Also before the kernel is told, as without a cache."""
    inbox = await setting.inode(b"Inbox")
    before = dict(await kernel.list(inbox))

    with setting.writing() as writer:
        writer.put_emails([email(COUNT, "a")])
    assert name(COUNT) in dict(await kernel.list(inbox))

    with setting.writing() as writer:
        writer.remove_emails(["M0"])
    assert name(0) not in dict(await kernel.list(inbox))

    with setting.writing() as writer:
        writer.correct_size("b1", 4321)
    assert dict(await kernel.list(inbox))[name(1)].st_size == 4321

    with setting.writing() as writer:
        writer.put_emails([email(2, "a", "b")])
    entries = dict(await kernel.list(inbox))
    assert entries[name(2)].st_nlink == 2
    assert entries[b"0-Sub"].st_mtime_ns != before[b"0-Sub"].st_mtime_ns

    with setting.writing() as writer:
        put_mailboxes(writer, mailbox("d", "New", "a"))
    assert b"New" in dict(await kernel.list(inbox))
    assert setting.listing_tree.listed == [inbox] * 6


async def test_a_commit_during_a_listing_is_in_the_next_one(
    setting: Setting, kernel: Kernel
) -> None:
    inbox = await setting.inode(b"Inbox")

    def expunge() -> None:
        with setting.writing() as writer:
            writer.remove_emails(["M0"])

    setting.listing_tree.meanwhile = expunge
    assert name(0) in names(await kernel.list(inbox))
    assert name(0) not in names(await kernel.list(inbox))


async def test_the_status_file_is_listed_with_its_current_attributes(
    setting: Setting, kernel: Kernel
) -> None:
    """The server's reach changes without a commit, and `.jmapfs.json` with it."""
    about = STATUS_FILE_NAME.encode()
    sizes = set()
    for reach in (Reachability(online=True), OFFLINE, Reachability(online=True)):
        setting.reach = reach
        for _ in range(2):
            entry = dict(await kernel.list(ROOT))[about]
            by_inode = await setting.operations.getattr(pyfuse3.InodeT(STATUS_FILE_INODE), CONTEXT)
            assert entry.__getstate__() == by_inode.__getstate__()
            sizes.add(entry.st_size)
    assert len(sizes) == 2
    assert setting.listing_tree.listed == [ROOT] * 3


async def test_entries_of_an_older_generation_are_not_cached_by_the_kernel(
    setting: Setting, kernel: Kernel
) -> None:
    inbox = await setting.inode(b"Inbox")
    handle = await kernel.open(inbox)
    before = await kernel.read(handle, 0, 10)
    setting.operations.start_generation()
    after = await kernel.read(handle)
    assert [each for each, _, _ in after][:10] == [each for each, _, _ in before]
    assert len(after) == COUNT + 1
    assert all(entry.entry_timeout == entry.attr_timeout == 0 for _, entry, _ in after)
    # A listing that is opened now is up to date.
    assert all(entry.entry_timeout >= 3600 for _, entry in await kernel.list(inbox))
    assert all(entry.attr_timeout >= 3600 for _, entry in await kernel.list(inbox))
    assert setting.listing_tree.listed == [inbox]
    await setting.operations.releasedir(handle)


async def test_a_frozen_tree_stays_as_it_is(setting: Setting, kernel: Kernel) -> None:
    inbox = await setting.inode(b"Inbox")
    with frozen(setting) as (tree, listing_tree):
        setting.operations.show(tree, listing_tree)
        for number in range(3):
            with setting.writing() as writer:
                writer.remove_emails([f"M{number}"])
            assert names(await kernel.list(inbox))[:2] == [b"0-Sub", name(0)]
        assert listing_tree.listed == [inbox]
        setting.operations.show(setting.tree, setting.listing_tree)
        assert names(await kernel.list(inbox))[:2] == [b"0-Sub", name(3)]


@pytest.mark.usefixtures("alike")
async def test_a_frozen_tree_and_the_live_one_have_listings_of_their_own(
    setting: Setting, kernel: Kernel
) -> None:
    inbox = await setting.inode(b"Inbox")
    with frozen(setting) as (tree, listing_tree):
        with setting.writing() as writer:
            writer.remove_emails(["M0"])
        for _ in range(2):
            setting.operations.show(setting.tree, setting.listing_tree)
            assert name(0) not in names(await kernel.list(inbox))
            setting.operations.show(tree, listing_tree)
            assert name(0) in names(await kernel.list(inbox))


@pytest.mark.usefixtures("alike")
async def test_a_listing_that_ends_in_another_tree_is_not_cached(
    setting: Setting, kernel: Kernel
) -> None:
    inbox = await setting.inode(b"Inbox")
    with frozen(setting) as (tree, listing_tree):
        with setting.writing() as writer:
            writer.remove_emails(["M0"])
        setting.listing_tree.meanwhile = lambda: setting.operations.show(tree, listing_tree)
        assert name(0) not in names(await kernel.list(inbox))
        assert name(0) in names(await kernel.list(inbox))
        assert listing_tree.listed == [inbox]


def files(count: int, first: int = 0) -> DirectoryListing:
    listing = DirectoryRows()
    numbers = range(first, first + count)
    listing.extend(
        [f"m{number:04}.eml" for number in numbers],
        [100 + number for number in numbers],
        numbers,
        [0] * count,
        [1] * count,
    )
    return DirectoryListing((), listing)


def test_the_cache_is_bounded() -> None:
    listings = DirectoryCache(AttributeWriter(Ownership(0, 0)), limit=100)
    assert listings.put(1, files(101), 1) is None
    assert listings.get(1, 1) is None
    for inode in (1, 2):
        assert listings.put(inode, files(40), 1) is not None
    assert listings.get(1, 1) is not None
    # The one that was used longest ago makes room.
    assert listings.put(3, files(40), 1) is not None
    assert [inode for inode in (1, 2, 3) if listings.get(inode, 1) is not None] == [1, 3]
    assert listings.get(3, 2) is None
    # Empty directories are not for nothing.
    for inode in range(10, 1000):
        listings.put(inode, files(0), 1)
    assert sum(listings.get(inode, 1) is not None for inode in range(1000)) <= 100
    listings.clear()
    assert all(listings.get(inode, 1) is None for inode in range(1000))


async def test_a_listing_that_is_too_long_is_not_cached(
    setting: Setting, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setting.operations._listings, "_limit", COUNT)
    inbox = await setting.inode(b"Inbox")
    for _ in range(2):
        entries = await kernel.list(inbox, 64)
        assert names(entries) == sorted([b"0-Sub", *map(name, range(COUNT))])
        assert all(entry.entry_timeout >= 3600 for _, entry in entries)
    assert setting.listing_tree.listed == [inbox] * 2


async def opened_and_closed(setting: Setting, inode: pyfuse3.InodeT) -> None:
    opened = await setting.open(inode)
    await setting.operations.release(opened.fh)


async def test_the_record_of_a_file_is_cached_for_a_generation(setting: Setting) -> None:
    inode = await setting.inode(b"Inbox", name(5))
    for _ in range(3):
        await opened_and_closed(setting, inode)
    assert setting.tree.asked == [inode]
    setting.operations.start_generation()
    for _ in range(3):
        await opened_and_closed(setting, inode)
    assert setting.tree.asked == [inode] * 2
    assert not setting.content.held


async def test_a_removed_file_cannot_be_opened_in_the_next_generation(setting: Setting) -> None:
    inode = await setting.inode(b"Inbox", name(5))
    await opened_and_closed(setting, inode)
    with setting.writing() as writer:
        writer.remove_emails(["M5"])
    # The kernel has not been told yet, and opens the inode that it knows.
    opened = await setting.open(inode)
    setting.operations.start_generation()
    # The open file can still be read.
    assert bytes(await setting.operations.read(opened.fh, 0, 4)) == b"xxxx"
    await setting.operations.release(opened.fh)
    for _ in range(2):
        with pytest.raises(pyfuse3.FUSEError) as failure:
            await setting.open(inode)
        assert failure.value.errno == errno.ENOENT
    assert setting.tree.asked == [inode] * 3
    # It is found as soon as it is back: missing files are not cached.
    with setting.writing() as writer:
        writer.put_emails([email(5, "a")])
    await opened_and_closed(setting, inode)


async def test_a_corrected_size_is_shown_in_the_next_generation(setting: Setting) -> None:
    inode = await setting.inode(b"Inbox", name(5))
    await opened_and_closed(setting, inode)
    with setting.writing() as writer:
        writer.correct_size("b5", 2000)
    setting.operations.start_generation()
    opened = await setting.open(inode)
    await setting.operations.read(opened.fh, 0, 10)
    assert setting.content.reads == [("b5", 2000, 0, 10)]
    await setting.operations.release(opened.fh)


async def test_a_corrected_size_is_shown_at_once_after_a_failed_read(setting: Setting) -> None:
    """The next open has the true size, even if the kernel is not told of the change."""
    inode = await setting.inode(b"Inbox", name(5))
    opened = await setting.open(inode)
    with setting.writing() as writer:
        writer.correct_size("b5", 2000)
    setting.content.error = BlobMismatchError("another size")
    with pytest.raises(pyfuse3.FUSEError):
        await setting.operations.read(opened.fh, 0, 10)
    setting.content.error = None
    await setting.operations.release(opened.fh)
    again = await setting.open(inode)
    await setting.operations.read(again.fh, 0, 10)
    assert setting.content.reads[-1] == ("b5", 2000, 0, 10)
    await setting.operations.release(again.fh)


async def test_a_frozen_tree_has_its_own_records_of_files(setting: Setting) -> None:
    inode = await setting.inode(b"Inbox", name(5))
    await opened_and_closed(setting, inode)
    with frozen(setting) as (tree, listing_tree):
        with setting.writing() as writer:
            writer.remove_emails(["M5"])
        setting.operations.show(tree, listing_tree)
        await opened_and_closed(setting, inode)
        assert tree.asked == [inode]
        # It is gone from the live tree, and stays in this one in each generation.
        setting.operations.start_generation()
        await opened_and_closed(setting, inode)
        setting.operations.show(setting.tree, setting.listing_tree)
        with pytest.raises(pyfuse3.FUSEError):
            await setting.open(inode)
