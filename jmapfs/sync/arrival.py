"""Whether an index that another process keeps has come to what the server has now.

Its keeper may be unable to follow the server although we can talk to it: its password is an old
one, or it is a snapshot that has just ended. So it is not believed, but the server is asked for its
states (RFC 8620 §5.1), and the index has to have these, or to have been brought up to date since.
"""

from __future__ import annotations

import time

import trio

from jmapfs.index import IndexDatabase
from jmapfs.jmap import Client


class Arrival:
    """The coming of an index to what the server has at this moment, or later."""

    def __init__(self, client: Client, database: IndexDatabase) -> None:
        self._client = client
        self._database = database
        # The clock of the machine, as for `synced_at`: it is set by another process.
        self._began = time.time()

    async def has_come(self) -> bool:
        """Tell whether the index has come there.

        Raises:
            StorageError: the index cannot be read.
            JmapfsError: what the client raises.
        """
        state = await trio.to_thread.run_sync(self._database.state)
        if not state.complete or state.synced_at >= self._began:
            return state.complete
        # A mailbox that is renamed changes its own state only.
        _, mailbox_state = await self._client.mailboxes()
        if state.mailbox_state != mailbox_state:
            return False
        return state.email_state == await self._client.email_state()
