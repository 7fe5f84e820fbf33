"""One request as it goes out, and its answer as it comes in, chunk by chunk and checked.

A body that breaks off must never pass for content, and a silent server must not be waited for
longer than a stall and a deadline allow.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import httpx
import trio

from jmapfs.errors import DeadlineError, ProtocolError, UnreachableError
from jmapfs.jmap.coding import Decoder
from jmapfs.jmap.failures import HTTP_FAILURES, network_failure
from jmapfs.jmap.retrying import TransientError

STALL_TIMEOUT = 10.0
"""Seconds without a byte after which an answer is given up."""

# Reading on under a cancelled scope ends at the first wait for the network; what was received
# already is no more than this many chunks.
_MOST_BUFFERED_CHUNKS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A request, whole, so that it can be sent again.

    `authenticated` tells whether the credentials go with it; `expected` are the statuses that are
    an answer rather than a refusal; `patience` is how long its first byte may take, in seconds.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    authenticated: bool = True
    expected: frozenset[int] = frozenset({200})
    patience: float = STALL_TIMEOUT


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `url` is what was asked."""

    status: int
    headers: httpx.Headers
    url: str
    content: bytes


class Incoming:
    """An answer whose headers are there and whose body is still coming.

    `spoilt` is called when it does not come to its end: the connection is then of no more use.
    """

    def __init__(
        self, response: httpx.Response, *, host: str, until: float, spoilt: Callable[[], None]
    ) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        # Not by way of the response's own iterators: what fails in them leaves those below open.
        self._chunks = aiter(cast("AsyncIterable[bytes]", response.stream))
        self._host = host
        self._until = until
        self._spoilt = spoilt
        self._ended = False
        self._put_back = b""
        self._received = 0
        self._decoder = Decoder(self.headers.get("content-encoding", ""), host)
        self._decoded: Iterator[bytes] = iter(())

    @property
    def length(self) -> int | None:
        """The body's length in bytes as announced, if it is, before any content coding."""
        value = self.headers.get("content-length", "")
        return int(value[:18]) if value.isascii() and value.isdigit() else None

    async def next_chunk(self) -> bytes:
        """Return the next bytes of the body, decoded, or b"" at its end.

        Raises TransientError when it breaks off or stalls, DeadlineError when its time is up,
        ProtocolError when it cannot be decoded.
        """
        chunk, self._put_back = self._put_back, b""
        while not chunk:
            piece = next(self._decoded, None)
            if piece is not None:
                chunk = piece
            elif self._ended:
                break
            else:
                self._decoded = self._decoder.decode(await self._read())
        return chunk

    def put_back(self, surplus: bytes) -> None:
        """Let the next chunk be `surplus`, the unused end of the last one."""
        self._put_back = surplus

    async def read(self, limit: int) -> bytes:
        """Return the whole body; raises ProtocolError when it has more than `limit` bytes."""
        body = bytearray()
        while chunk := await self.next_chunk():
            body += chunk
            if len(body) > limit:
                raise ProtocolError(f"the answer of {self._host} is larger than {limit:,} bytes")
        return bytes(body)

    async def beginning(self, limit: int) -> bytes:
        """Return what can be had of the first `limit` bytes, whatever happens after them."""
        body = bytearray()
        with suppress(TransientError, ProtocolError, DeadlineError):
            while len(body) < limit and (chunk := await self.next_chunk()):
                body += chunk
        return bytes(body[:limit])

    async def aclose(self) -> None:
        """End the exchange; a body that was not read to its end takes its connection with it."""
        if not self._ended:
            await self._unwind()
        with suppress(*HTTP_FAILURES):
            await self._response.aclose()

    async def _read(self) -> bytes:
        limit = min(self._until, trio.current_time() + STALL_TIMEOUT)
        with trio.move_on_at(limit):
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                self._ended = True
                self._check_length()
                return b""
            except HTTP_FAILURES as error:
                self._ended = True
                self._spoilt()
                raise network_failure(error, self._host) from error
            self._received += len(chunk)
            if self.length is not None and self._received > self.length:
                self._check_length()
            return chunk
        self._ended = True
        self._spoilt()
        if trio.current_time() >= self._until:
            raise DeadlineError(f"the answer of {self._host} did not end in time")
        raise TransientError(
            DeadlineError(f"the answer of {self._host} stopped for {STALL_TIMEOUT:.0f} s")
        )

    def _check_length(self) -> None:
        if self.length is not None and self._received != self.length:
            came = f"{self._received:,} of {self.length:,} bytes came"
        elif not self._decoder.whole:
            came = "it is compressed, and has no end"
        else:
            return
        raise TransientError(UnreachableError(f"the answer of {self._host} broke off: {came}"))

    async def _unwind(self) -> None:
        # The body comes through a chain of asynchronous generators, of which closing the outermost
        # closes no other: the rest would be left to the garbage collector. A cancelled read goes
        # through all of them at once.
        self._ended = True
        self._spoilt()
        chunks = 0
        with suppress(*HTTP_FAILURES), trio.CancelScope(shield=True) as scope:
            scope.cancel()
            async for _ in self._chunks:
                chunks += 1
                if chunks > _MOST_BUFFERED_CHUNKS:
                    break
