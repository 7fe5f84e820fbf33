"""What a running mount can be asked for over its control socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import trio

from jmapfs.control import Command, SessionCommand
from jmapfs.errors import JmapfsError, UsageError
from jmapfs.fuse import MailOperations
from jmapfs.mount.account import MountedAccount
from jmapfs.mount.freezing import Freezer
from jmapfs.mount.holding import Holding
from jmapfs.mount.prefetching import Prefetching
from jmapfs.mount.request import MountRequest
from jmapfs.mount.showing import directory_names
from jmapfs.mount.status import mount_status

_SYNC_SECONDS: Final = 600.0
_LONGEST_FREEZE: Final = 7 * 24 * 3600.0


class Commands:
    """The commands of one mount."""

    def __init__(
        self,
        request: MountRequest,
        accounts: Sequence[MountedAccount],
        operations: MailOperations,
        freezer: Freezer,
    ) -> None:
        self._request = request
        self._accounts = accounts
        self._operations = operations
        self._freezer = freezer
        self._prefetching = Prefetching(accounts, freezer)
        self._holding = Holding(accounts, freezer)

    def sessions(self) -> Mapping[str, SessionCommand]:
        """Return the commands that begin a session, by their names."""
        return {"hold": self._holding.hold}

    def table(self) -> Mapping[str, Command]:
        """Return the commands by their names."""
        return {
            "status": self.status,
            "sync": self.sync,
            "freeze": self.freeze,
            "thaw": self.thaw,
            "missing": self._prefetching.missing,
            "prefetch": self._prefetching.prefetch,
        }

    async def status(self, _arguments: Mapping[str, Any]) -> object:
        """Return the status."""
        return await mount_status(
            self._request, self._accounts, self._operations, self._freezer.frozen
        )

    async def sync(self, arguments: Mapping[str, Any]) -> object:
        """Ask the server now; answer when the tree, and the kernel, have what it says.

        With a `path`, of several accounts only the one whose directory that is in. Where one of
        them fails, the others are brought up to date all the same.
        """
        errors: list[JmapfsError] = []

        async def sync(account: MountedAccount) -> None:
            try:
                await account.keeper.sync_now()
            except JmapfsError as error:
                errors.append(error)

        with trio.move_on_after(_SYNC_SECONDS) as scope:
            async with trio.open_nursery() as nursery:
                for account in self._accounts_at(arguments.get("path")):
                    nursery.start_soon(sync, account)
        if errors:
            raise errors[0]
        if scope.cancelled_caught:
            raise JmapfsError(f"the account is not up to date after {_SYNC_SECONDS:.0f} s")
        return {}

    def _accounts_at(self, path: object) -> Sequence[MountedAccount]:
        if not isinstance(path, str) or not path:
            return self._accounts
        names = directory_names(self._accounts)
        top = path.partition("/")[0]
        # Without a directory of its own, an account is all there is.
        return [one for one in self._accounts if names.get(one.slot, top) == top]

    async def freeze(self, arguments: Mapping[str, Any]) -> object:
        """Hold the tree as it is, for `seconds`."""
        seconds = arguments.get("seconds")
        if not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST_FREEZE:
            raise UsageError("a freeze takes more than nothing and a week at most")
        return asdict(await self._freezer.freeze(float(seconds)))

    async def thaw(self, arguments: Mapping[str, Any]) -> object:
        """Let the tree go on; with `since`, only if that is when the freeze began."""
        return {"was_frozen": await self._freezer.thaw(arguments.get("since"))}
