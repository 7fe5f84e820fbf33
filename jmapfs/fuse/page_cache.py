"""Storing content in the kernel's page cache before it is read (FUSE_NOTIFY_STORE).

Programs read pages in the page cache without a READ. For worker threads only: the kernel makes the
notification wait for a pending READ of the inode, and only the event loop can answer the READ.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final

import pyfuse3

_log = logging.getLogger(__name__)

# The largest notification: 32 pages fit into any kernel's request.
_CHUNK_BYTES: Final = 128 * 1024

_STOP_SECONDS: Final = 1.0


class KernelEpoch:
    """The epoch of the content that the kernel's page cache may have; see `blob_keys`.

    `lock` is held while content is stored in the page cache. `begin` waits for that, so that the
    content of the earlier epoch can be dropped afterwards.
    """

    def __init__(self, epoch: str) -> None:
        self.lock = threading.Lock()
        self._epoch = epoch

    @property
    def current(self) -> str:
        """The epoch whose content the kernel may get."""
        return self._epoch

    def begin(self, epoch: str) -> None:
        """Give the kernel content of this epoch only; for worker threads."""
        with self.lock:
            self._epoch = epoch


class PageCacheWriter:
    """Stores content in the page cache of the mount; `stored` counts the stored files."""

    def __init__(self) -> None:
        self.stored = 0
        self._stopped = False
        self._storing = 0
        self._idle = threading.Condition()

    def stop(self) -> None:
        """Store nothing more: the mount is about to end.

        Waits for calls that are under way, but only briefly: the kernel may be waiting for an
        answer that will never come.
        """
        with self._idle:
            self._stopped = True
            self._idle.wait_for(lambda: not self._storing, _STOP_SECONDS)

    def store(self, files: Sequence[tuple[int, bytes]]) -> set[int]:
        """Store whole contents (by inode); return the inodes that the kernel did not take.

        The kernel takes only content of inodes that it knows.
        """
        with self._idle:
            self._storing += 1
        refused: set[int] = set()
        try:
            refused |= {inode for inode, data in files if self._stopped or not _store(inode, data)}
        finally:
            with self._idle:
                self._storing -= 1
                self.stored += len(files) - len(refused)
                self._idle.notify_all()
        return refused


def _store(inode: int, data: bytes) -> bool:
    try:
        for offset in range(0, len(data), _CHUNK_BYTES):
            chunk = data if len(data) <= _CHUNK_BYTES else data[offset : offset + _CHUNK_BYTES]
            pyfuse3.notify_store(pyfuse3.InodeT(inode), offset, chunk)
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.info("the kernel does not take content: %s", error)
        return False
    return True
