"""What surrounds every FUSE handler: it is counted, and no exception but FUSEError leaves it.

Any other exception would end `pyfuse3.main`, and with it the whole mount. Errors that were
foreseen become their errno; what was not is a bug: its traceback goes to the log, the caller gets
EIO, and the mount lives on.
"""

from __future__ import annotations

import errno
import functools
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3

from jmapfs.errors import EntryNotFoundError, JmapfsError

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Counting(Protocol):
    """Something with a count for each operation."""

    counts: Counter[str]


_C = TypeVar("_C", bound=Counting)


def handler(
    method: Callable[Concatenate[_C, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_C, _P], Coroutine[Any, Any, _R]]:
    """Count the calls of a handler by its name, and turn what it raises into FUSEError."""
    name = method.__name__

    @functools.wraps(method)
    async def guarded(self: _C, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self.counts[name] += 1
        try:
            return await method(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except EntryNotFoundError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except JmapfsError as error:
            _log.warning("%s: %s", name, error)
            raise pyfuse3.FUSEError(error.errno) from None
        except sqlite3.Error as error:
            _log.error("%s: the index cannot be read: %s", name, error)
            raise pyfuse3.FUSEError(errno.EIO) from None
        except Exception:  # noqa: BLE001 - a bug must not take the mount with it
            _log.exception("a bug in %s", name)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return guarded
