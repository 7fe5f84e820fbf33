"""Whether an index that another process keeps has come to what the server has now.

Its keeper may be unable to follow the server although we can talk to it: its password is an old
one, or it is a snapshot that has just ended. So it is not believed, but the server is asked for its
state (RFC 8620 §5.1), and the index has to come to that, or to one that was reached after that.
"""

from __future__ import annotations

import sqlite3
import time

import trio

from jmapfs.errors import StorageError
from jmapfs.index import AccountState, IndexDatabase
from jmapfs.jmap import Client


class Arrival:
    """The coming of an index to what the server has when it is asked for the first time."""

    def __init__(self, client: Client, database: IndexDatabase) -> None:
        self._client = client
        self._database = database
        self._began = 0.0
        self._wanted = ""

    async def has_come(self) -> bool:
        """Tell whether the index has come there.

        Raises:
            StorageError: the index cannot be read.
            JmapfsError: what the client raises.
        """
        if not self._wanted:
            # The clock of the machine, as for `synced_at`: it is set by another process.
            self._began = time.time()
            self._wanted = await self._client.email_state()
        state = await trio.to_thread.run_sync(current_state, self._database)
        return state.complete and (
            state.email_state == self._wanted or state.synced_at >= self._began
        )


def current_state(database: IndexDatabase) -> AccountState:
    """Return the state that an index holds; an empty one where there is none yet.

    Raises:
        StorageError: it cannot be read.
    """
    if not database.path.exists():
        return AccountState()
    try:
        with database.reader() as reader:
            return reader.state()
    except sqlite3.Error as error:
        raise StorageError(f"cannot read the index {database.path}: {error}") from error
