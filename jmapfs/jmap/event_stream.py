"""The text/event-stream format (WHATWG HTML §9.2): bytes as they come, events as they are whole."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
from httpx_sse import EventSource, ServerSentEvent

from jmapfs.errors import ProtocolError

MEDIA_TYPE = "text/event-stream"

LARGEST_EVENT = 1 << 20
"""Bytes. A StateChange names every account that changed, and a user may share thousands."""

_HEADERS = {"Content-Type": f"{MEDIA_TYPE}; charset=utf-8"}


class EventDecoder:
    """Decodes a stream piece by piece, holding no more than one event that is not whole yet."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._after_cr = False

    def feed(self, data: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that `data` completes; iterate to the end before the next call.

        Raises ProtocolError when one is larger than LARGEST_EVENT, be it a line without an end.
        """
        # An event ends at its first empty line. Where the last of these is shows in what is new.
        start = max(0, len(self._pending) - 1)
        self._pending += self._with_plain_lines(data)
        if (end := self._pending.rfind(b"\n\n", start)) >= 0:
            whole = bytes(self._pending[: end + 2])
            del self._pending[: end + 2]
            yield from _events(whole)
        if len(self._pending) > LARGEST_EVENT:
            raise ProtocolError(f"the server sends an event of more than {LARGEST_EVENT:,} bytes")

    def _with_plain_lines(self, data: bytes) -> bytes:
        """Return `data` with each line ending in LF, where CRLF and CR are as good."""
        if self._after_cr:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _events(whole: bytes) -> Iterator[ServerSentEvent]:
    # httpx-sse reads from a response only, and its way for asynchronous ones (`aiter_sse`) leaves
    # the generators of httpx below it to the garbage collector when it is left early. So what is
    # whole becomes a small response of its own, which is read without waiting.
    return EventSource(httpx.Response(200, headers=_HEADERS, content=whole)).iter_sse()
