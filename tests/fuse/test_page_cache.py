"""What the kernel does not take costs nothing, and none is offered at the end of a mount."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import pyfuse3
import pytest

from jmapfs.fuse.page_cache import PageCacheWriter


class Kernel:
    """Takes what it is notified of, for the inodes that it knows."""

    def __init__(self) -> None:
        self.contents: dict[int, bytes] = {}
        self.errors: dict[int, OSError] = {}
        self.let = threading.Event()
        self.let.set()

    def notify_store(self, inode: int, offset: int, data: bytes) -> None:
        assert self.let.wait(10)
        if inode in self.errors:
            raise self.errors[inode]
        known = self.contents.get(inode, b"")
        assert len(known) == offset
        self.contents[inode] = known + data


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel()
    monkeypatch.setattr(pyfuse3, "notify_store", kernel.notify_store)
    yield kernel
    kernel.let.set()


@pytest.mark.parametrize("size", [1, 4096, 128 * 1024, 128 * 1024 + 1, 1_000_000])
def test_whole_contents_are_stored(kernel: Kernel, size: int) -> None:
    pages = PageCacheWriter()
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert pages.store([(7, data), (8, b"other")]) == set()
    assert kernel.contents == {7: data, 8: b"other"}
    assert pages.stored == 2


def test_contents_that_the_kernel_does_not_take(kernel: Kernel) -> None:
    kernel.errors = {
        7: FileNotFoundError(errno.ENOENT, "unknown"),
        9: OSError(errno.ENOMEM, "no memory"),
    }
    pages = PageCacheWriter()
    assert pages.store([(7, b"gone"), (8, b"known"), (9, b"too much")]) == {7, 9}
    assert kernel.contents == {8: b"known"}
    assert pages.stored == 1


def test_nothing_is_stored_after_stop(kernel: Kernel) -> None:
    pages = PageCacheWriter()
    pages.stop()
    assert pages.store([(7, b"late")]) == {7}
    assert kernel.contents == {}


def test_stop_waits_briefly_for_what_is_under_way(kernel: Kernel) -> None:
    pages = PageCacheWriter()
    kernel.let.clear()
    refused: set[int] = set()
    thread = threading.Thread(target=lambda: refused.update(pages.store([(7, b"a"), (8, b"b")])))
    thread.start()
    # The kernel holds it back: it is given up on after a second.
    pages.stop()
    assert thread.is_alive()
    kernel.let.set()
    thread.join(10)
    assert refused == {8}
    assert kernel.contents == {7: b"a"}
