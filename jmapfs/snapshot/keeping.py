"""Having whoever keeps the index that a snapshot reads bring it up to date."""

from __future__ import annotations

import trio

from jmapfs.control import SYNC_SECONDS, ask, mounts, socket_directory, socket_name
from jmapfs.errors import BusyError, JmapfsError
from jmapfs.index import AccountState, IndexDatabase
from jmapfs.jmap import Client
from jmapfs.sync import Arrival


class Keeper:
    """Another process that keeps an index."""

    def __init__(self, client: Client, database: IndexDatabase) -> None:
        self._database = database
        self._arrival = Arrival(client, database)

    async def ask(self, refusal: BusyError) -> BusyError | None:
        """Ask mounts to bring the index up to date; return why it is not, if that is so.

        `refusal` says who keeps it.
        """
        state = await trio.to_thread.run_sync(self._database.state)
        if not state.complete:
            return BusyError(f"{refusal}, and has not listed it yet: try again later")
        try:
            await trio.to_thread.run_sync(_sync_mounts_of, state, abandon_on_cancel=True)
        except JmapfsError as error:
            refusal = BusyError(f"{refusal}, which says: {error}")
        if await self._arrival.has_come():
            return None
        return BusyError(f"{refusal}; and the index is not up to date")


def _sync_mounts_of(state: AccountState) -> None:
    """Ask the mounts that keep an index of an account to bring it up to date.

    There may be several, with a cache of their own each; the one that is meant is among them, or
    it is no mount that keeps the index.

    Raises:
        JmapfsError: the first of those that could not; the others were asked all the same.
    """
    failure: JmapfsError | None = None
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
            try:
                ask(socket_directory(), name, "sync", seconds=SYNC_SECONDS)
            except JmapfsError as error:
                failure = failure or error
    if failure is not None:
        raise failure
