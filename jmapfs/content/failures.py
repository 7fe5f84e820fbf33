"""Blobs that could not be fetched a short time ago, so that readers do not ask for them in a loop.

The first failures of a blob delay nothing: the user may have mended something, and tries again.
"""

from collections import OrderedDict
from typing import Final

import trio

from jmapfs.backoff import BackOff
from jmapfs.errors import AuthenticationError, JmapfsError, OfflineError

_FREE_FAILURES: Final = 3
_FIRST_PAUSE: Final = 2.0
_LONGEST_PAUSE: Final = 25.0
# A failure takes about 500 bytes.
_MOST_BLOBS: Final = 8192


class _Failure:
    def __init__(self, error: JmapfsError) -> None:
        self.error = error
        self.count = 0
        self.back_off = BackOff(_FIRST_PAUSE, _LONGEST_PAUSE)


class BlobFailures:
    """Remembers, for growing pauses, the errors of blobs that have failed three times in a row."""

    def __init__(self) -> None:
        self._blobs: OrderedDict[str, _Failure] = OrderedDict()

    def get(self, key: str) -> JmapfsError | None:
        """Return why a blob must not be requested now, or None."""
        failure = self._blobs.get(key)
        if failure is None or trio.current_time() >= failure.back_off.due():
            return None
        return _copy(failure.error)

    def record(self, key: str, error: Exception) -> None:
        """Record that a request for a blob has failed."""
        # These errors say nothing about the blob, and they have pauses of their own.
        if not isinstance(error, JmapfsError) or isinstance(
            error, OfflineError | AuthenticationError
        ):
            return
        error = _copy(error)
        failure = self._blobs.setdefault(key, _Failure(error))
        self._blobs.move_to_end(key)
        failure.error = error
        failure.count += 1
        if failure.count >= _FREE_FAILURES:
            failure.back_off.record_failure()
        while len(self._blobs) > _MOST_BLOBS:
            self._blobs.popitem(last=False)

    def forget(self, key: str) -> None:
        """Record that a blob has arrived."""
        self._blobs.pop(key, None)

    def clear(self) -> None:
        """Forget all failures, so that each blob is requested at once."""
        self._blobs.clear()


def _copy(error: JmapfsError) -> JmapfsError:
    """Return the same error without its traceback and its cause.

    Their frames would keep alive what they refer to, such as the parts of a content.
    """
    # Not copy.copy(): some classes take other arguments than `args`.
    copied = type(error).__new__(type(error), *error.args)
    vars(copied).update(vars(error))
    return copied
