"""One request as it goes out, and its answer as it comes in, chunk by chunk and checked.

A body that breaks off must never pass for content, and a silent server must not be waited for
longer than a stall and a deadline allow.

The content coding of an answer: gzip, or none.

httpx decodes too, but neither tells a compressed body that is cut from a whole one, nor bounds
what a small one may grow to.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import httpx
import trio

from jmapfs.errors import DeadlineError, ProtocolError, UnreachableError
from jmapfs.jmap.http_errors import HTTP_FAILURES, network_error, printable
from jmapfs.jmap.retry import TransientError

_STEP = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS


class Decoder:
    """Decodes a body piece by piece; gzip, or none at all."""

    def __init__(self, coding: str, host: str) -> None:
        name = coding.strip().lower()
        self._unknown = "" if name in {"", "identity", "gzip", "x-gzip"} else name
        self._host = host
        self._gzip = zlib.decompressobj(_GZIP) if name in {"gzip", "x-gzip"} else None
        self._begun = False

    @property
    def whole(self) -> bool:
        """Whether what was decoded so far can be all: no gzip stream is open."""
        return self._gzip is None or self._gzip.eof or not self._begun

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` decodes to, in pieces of bounded size, some of them empty.

        Raises ProtocolError for a coding that is not known, or broken.
        """
        if self._unknown:
            raise ProtocolError(
                f"{self._host} sends its answer in a coding that was not asked for: "
                f"{printable(self._unknown, 40)}"
            )
        if self._gzip is None:
            yield data
            return
        while data:
            if self._gzip.eof:
                # One gzip file after the other is a gzip file (RFC 1952 §2.2).
                self._gzip = zlib.decompressobj(_GZIP)
            self._begun = True
            try:
                piece = self._gzip.decompress(data, _STEP)
            except zlib.error:
                raise ProtocolError(
                    f"{self._host} sent an answer whose compression is broken"
                ) from None
            data = self._gzip.unconsumed_tail or self._gzip.unused_data
            yield piece


STALL_TIMEOUT = 10.0
"""Seconds without a byte after which an answer is given up."""

# Reading on under a cancelled scope ends at the first wait for the network; what was received
# already is no more than this many chunks.
_MOST_BUFFERED_CHUNKS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
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
class Response:
    """A whole answer; `url` is what was asked."""

    status: int
    headers: httpx.Headers
    url: str
    content: bytes


class ResponseReader:
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
                raise network_error(error, self._host) from error
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
