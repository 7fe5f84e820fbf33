"""Guards the index of a mounted account: finds damage, and has the account listed again.

Damage is also found by everything that reads the index (`index.lasting_reader`). Whoever finds it,
the process with the writer lease replaces the index in its next round, which begins at once.
"""

import functools
import logging
from typing import Final

import trio

from jmapfs.errors import DamageError, StorageError
from jmapfs.index.database import IndexDatabase
from jmapfs.sync.follower import AccountFollower

_log = logging.getLogger(__name__)

# Looking at the file takes some microseconds.
_LOOK_SECONDS: Final = 5.0
# Checks take at most this part of the time. Half a million emails are checked in 5 s.
_CHECKING_PART: Final = 1 / 2000
_LEAST_CHECK_SECONDS: Final = 600.0


async def guard_index(database: IndexDatabase, follower: AccountFollower) -> None:
    """Look at the file of the index every few seconds, and read all of it from time to time."""
    token = trio.lowlevel.current_trio_token()

    def wake() -> None:
        # Damage may be found in any thread.
        token.run_sync_soon(follower.schedule.hint)

    database.on_damage = wake
    check_at = trio.current_time()
    while True:
        look = functools.partial(database.look, is_writer=follower.writes_index)
        try:
            await trio.to_thread.run_sync(look)
            if trio.current_time() >= check_at and not database.is_relisting:
                began_at = trio.current_time()
                await trio.to_thread.run_sync(database.check, abandon_on_cancel=True)
                took = trio.current_time() - began_at
                check_at = began_at + max(_LEAST_CHECK_SECONDS, took / _CHECKING_PART)
        except DamageError:
            # It was reported, and logged.
            check_at = trio.current_time()
        except (StorageError, OSError) as error:
            _log.warning("the index cannot be checked: %s", error)
            check_at = trio.current_time() + _LEAST_CHECK_SECONDS
        await trio.sleep(_LOOK_SECONDS)
