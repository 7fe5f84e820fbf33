"""Whoever keeps the index that a snapshot reads: it is to have come to what the server has now.

A keeper may be unable to follow the server although we can talk to it: its password is an old one,
or it is another snapshot, which has just ended. So it is not believed, but the server is asked for
its state, and the index has to come to that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

from jmapfs.control import ask, mounts, socket_directory, socket_name
from jmapfs.errors import BusyError, JmapfsError
from jmapfs.index import AccountState
from jmapfs.jmap import Client

_SYNC_SECONDS: Final = 630.0


class Keeper:
    """Another process that keeps an index; `state` reads what it has come to."""

    def __init__(self, client: Client, state: Callable[[], AccountState]) -> None:
        self._client = client
        self._state = state
        self._began = time.time()
        self._wanted = ""

    async def ask(self, refusal: BusyError) -> BusyError | None:
        """Ask mounts to bring the index up to date; return why it is not, if that is so."""
        if not self._wanted:
            self._began, self._wanted = time.time(), await self._client.email_state()
        state = await trio.to_thread.run_sync(self._state)
        if self._has_come(state):
            return None
        if not state.complete:
            return BusyError(f"{refusal}, and has not listed it yet: try again later")
        try:
            await trio.to_thread.run_sync(_sync_mounts_of, state, abandon_on_cancel=True)
        except JmapfsError as error:
            refusal = BusyError(f"{refusal}, which says: {error}")
        if self._has_come(await trio.to_thread.run_sync(self._state)):
            return None
        return BusyError(f"{refusal}; and the index is not up to date")

    def _has_come(self, state: AccountState) -> bool:
        return state.complete and (
            state.email_state == self._wanted or state.synced_at >= self._began
        )


def _sync_mounts_of(state: AccountState) -> None:
    """Ask the mounts that keep an index of an account to bring it up to date.

    There may be several, with a cache of their own each; the one that is meant is among them, or
    it is no mount that keeps the index.
    """
    for mount in mounts():
        if not mount.ours:
            continue
        name = socket_name(mount.mountpoint)
        try:
            status = ask(socket_directory(), name, "status")
        except JmapfsError:
            # A mount whose daemon has died keeps no index.
            continue
        accounts = [
            (account["account_id"], account["server"], account["leads"])
            for account in status.get("accounts", [status])
        ]
        if (state.account_id, state.server, True) in accounts:
            ask(socket_directory(), name, "sync", seconds=_SYNC_SECONDS)
