"""Handing content to the kernel before anybody asks for it (FUSE_NOTIFY_STORE).

What is in the page cache is read without a READ. Only for worker threads: with a READ pending on
the same inode the kernel makes the notification wait for its answer, and in the event loop there
would be nobody to give it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

import pyfuse3

_log = logging.getLogger(__name__)

# One notification carries no more than this: 32 pages fit into any kernel's request.
_PIECE_BYTES: Final = 128 * 1024

_STOP_SECONDS: Final = 1.0


class PageCacheWriter:
    """The kernel's page cache of the mount; `stored` counts the files it took."""

    def __init__(self) -> None:
        self.stored = 0
        self._stopped = False
        self._storing = 0
        self._idle = threading.Condition()

    def stop(self) -> None:
        """Hand over nothing more: the mount is about to go. Waits for what is under way, briefly.

        Not for long: the kernel may be holding a page back for an answer that will never come.
        """
        with self._idle:
            self._stopped = True
            self._idle.wait_for(lambda: not self._storing, _STOP_SECONDS)

    def store(self, files: Sequence[tuple[int, bytes]]) -> set[int]:
        """Hand over whole contents, by inode; return the inodes that the kernel did not take.

        It takes none of what it does not know, or has forgotten.
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
        for offset in range(0, len(data), _PIECE_BYTES):
            piece = data if len(data) <= _PIECE_BYTES else data[offset : offset + _PIECE_BYTES]
            pyfuse3.notify_store(pyfuse3.InodeT(inode), offset, piece)
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.info("the kernel does not take content: %s", error)
        return False
    return True
