"""How large the answers of a server may be, and where they are decoded.

An answer may be as large as the request allows: a base, and a generous amount for each object that
was requested. Nothing is read beyond that. The number of JSON values is limited too, because a
value of two bytes takes 64 bytes of memory when it is decoded.

Small answers are decoded in the event loop. Whatever is larger than SMALL_ANSWER is decoded in a
worker thread, so that the kernel does not wait for it. msgspec keeps the GIL during a call, at
about 1 ms per MiB to find the ends of objects. So large lists are decoded object by object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from jmapfs.errors import ProtocolError

T = TypeVar("T")

SMALL_ANSWER: Final = 64 * 1024
"""Bytes. Decoding so much takes less than a millisecond."""

MOST_OBJECTS: Final = 4096
"""How many emails are requested at once. More are not faster, and all are held in memory."""

MOST_MAILBOXES: Final = 100_000
"""The mailboxes of an account. No known account has a tenth of that."""

_LIMITER: Final = trio.CapacityLimiter(2)


class AnswerTooLargeError(ProtocolError):
    """The answer is larger than the request allows. The answer to a smaller request may not be."""


@dataclass(frozen=True, slots=True)
class AnswerLimit:
    """The largest answer: its bytes, and about how many JSON values it has."""

    bytes: int
    values: int

    def __add__(self, other: AnswerLimit) -> AnswerLimit:
        return AnswerLimit(self.bytes + other.bytes, self.values + other.values)

    def __mul__(self, count: int) -> AnswerLimit:
        return AnswerLimit(self.bytes * count, self.values * count)


# A single email can have a header of some 100 KB, such as a `From` with thousands of addresses.
_BASE: Final = AnswerLimit(4 * 2**20, 100_000)
# The properties of an email usually take 500 bytes.
_OBJECT: Final = AnswerLimit(16 * 2**10, 200)
# With all its properties, a mailbox takes 600 bytes. These are requested without most of them.
_MAILBOX: Final = AnswerLimit(640, 40)
# An id has up to 255 characters, and usually 20.
_ID: Final = AnswerLimit(1024, 1)
# The emails of changes, with the changes. If they are too large, they are requested in parts.
_REFERENCED: Final = AnswerLimit(16 * 2**20, 200_000)
# If a server accepts no limit, it returns all ids of an account.
_ALL_IDS: Final = AnswerLimit(64 * 2**20, 4_000_000)

SESSION_LIMIT: Final = AnswerLimit(8 * 2**20, 500_000)
"""The limit for a session, and for whatever else a server sends during discovery.

An account in a session takes 1 to 2 KB, and a user may share thousands of accounts.
"""


def answer_limit(calls: Iterable[tuple[str, Mapping[str, object]]]) -> AnswerLimit:
    """Return the limit for the answer to method calls, given their names and arguments."""
    limit = _BASE
    for name, arguments in calls:
        limit += _limit_of(name, arguments)
    return limit


def _limit_of(name: str, arguments: Mapping[str, object]) -> AnswerLimit:
    if name.endswith("/get"):
        ids = arguments.get("ids")
        if isinstance(ids, list | tuple):
            return _OBJECT * len(ids)
        return _REFERENCED if "#ids" in arguments else _MAILBOX * MOST_MAILBOXES
    count = arguments.get("limit", arguments.get("maxChanges"))
    return _ID * count if isinstance(count, int) else _ALL_IDS


async def run_decoder(decoder: Callable[[], T], size: int) -> T:
    """Return what `decoder` returns. It runs in a worker thread if `size` is not small."""
    if size <= SMALL_ANSWER:
        return decoder()
    return await trio.to_thread.run_sync(decoder, limiter=_LIMITER, abandon_on_cancel=True)
