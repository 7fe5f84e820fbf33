"""What surrounds every FUSE handler: it is counted, and no exception but FUSEError leaves it.

Any other exception would end `pyfuse3.main`, and with it the whole mount. Errors that were
foreseen become their errno; what was not is a bug: its traceback goes to the log, the caller gets
EIO, and the mount lives on.

`handler` is for those that may wait. `immediate` is for those that never do: these are plain
functions, so that no `await` can creep in between two of their steps, and each call makes one
coroutine and not two. With OPEN and RELEASE for every file that a program looks into, it shows.
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
        except Exception as error:  # noqa: BLE001 - a bug must not take the mount with it
            raise _fuse_error(name, error) from None

    return guarded


def immediate(
    method: Callable[Concatenate[_C, _P], _R],
) -> Callable[Concatenate[_C, _P], Coroutine[Any, Any, _R]]:
    """Make a handler of a function that does not wait; as `handler` does else."""
    name = method.__name__

    @functools.wraps(method)
    async def guarded(self: _C, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self.counts[name] += 1
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a bug must not take the mount with it
            raise _fuse_error(name, error) from None

    return guarded


def _fuse_error(name: str, error: Exception) -> pyfuse3.FUSEError:
    """Return what the kernel is told of an error, and log what is not an answer by itself."""
    if isinstance(error, pyfuse3.FUSEError):
        return error
    if isinstance(error, EntryNotFoundError):
        return pyfuse3.FUSEError(error.errno)
    if isinstance(error, JmapfsError):
        _log.warning("%s: %s", name, error)
        return pyfuse3.FUSEError(error.errno)
    if isinstance(error, sqlite3.Error):
        _log.error("%s: the index cannot be read: %s", name, error)
        return pyfuse3.FUSEError(errno.EIO)
    _log.error("a bug in %s", name, exc_info=error)
    return pyfuse3.FUSEError(errno.EIO)
