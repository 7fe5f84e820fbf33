"""Who leads: of the processes that mount an account, the one that writes its index."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Self

from jmapfs.errors import BusyError, StorageError
from jmapfs.index import IndexDatabase, IndexWriter
from jmapfs.lock import ProcessLock

_log = logging.getLogger(__name__)


class Lead:
    """The right to write the index: taken when it is free, kept to the end."""

    def __init__(self, directory: Path, database: IndexDatabase) -> None:
        self._directory = directory
        self._database = database
        self._stack = contextlib.ExitStack()
        self._writer: IndexWriter | None = None
        self._in_use = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def try_now(self) -> BusyError | None:
        """Take it if it is free; otherwise return who has it."""
        if self._writer is not None:
            return None
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(
                    ProcessLock(
                        self._directory / "lock",
                        f"this account ({self._directory})",
                        parents=True,
                    )
                )
            except BusyError as error:
                self._in_use = True
                return error
            self._database.prepare(in_use=self._in_use)
            self._writer = stack.enter_context(self._database.writer())
            self._stack.push(stack.pop_all())
        return None

    def take(self) -> IndexWriter | None:
        """Return the writer, if the right is ours or free."""
        try:
            self.try_now()
        except StorageError as error:
            _log.error("the index cannot be taken over: %s", error)
        return self._writer
