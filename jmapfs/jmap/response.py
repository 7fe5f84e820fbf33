"""An HTTP request, and its response: read chunk by chunk, decoded and checked.

A body that breaks off is always an error. The wait for a silent server is limited by a stall
timeout and by a deadline, which follows the bytes that arrive (`jmapfs.deadline`).

httpx can decode gzip too, but it does not notice that a gzip body is truncated, and it does not
limit the decoded size of a small body. So gzip is decoded here.
"""

import enum
import math
import zlib
from collections.abc import AsyncIterable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import httpx
import trio

from jmapfs.deadline import Deadline
from jmapfs.errors import DeadlineError, ProtocolError, UnreachableError, printable
from jmapfs.jmap.answers import AnswerTooLargeError
from jmapfs.jmap.http_errors import HTTP_FAILURES, TransientError, decimal, network_error

STALL_TIMEOUT = 10.0
"""Seconds without a byte after which a response is given up."""

_STEP = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS
# In a cancelled scope, reading first returns the chunks that have already arrived, never more than
# this number. When it would have to wait for the network, reading ends.
_MAX_BUFFERED_CHUNKS = 10_000


class RequestKind(enum.Enum):
    """What a request is for. A server may limit the requests of each kind by themselves."""

    SESSION = enum.auto()
    API = enum.auto()
    DOWNLOAD = enum.auto()
    PUSH = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request with its whole content, so that it can be sent again.

    `authenticated` tells whether the credentials are sent. A status in `expected` is not an error.
    `first_byte_timeout` is in seconds. With `new_connection`, no kept connection is used.
    """

    method: str
    url: str
    kind: RequestKind = RequestKind.API
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    authenticated: bool = True
    expected: frozenset[int] = frozenset({200})
    first_byte_timeout: float = STALL_TIMEOUT
    new_connection: bool = False


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response; `url` is the URL of the request."""

    status: int
    headers: httpx.Headers
    url: str
    content: bytes | bytearray


class ResponseReader:
    """A response whose head has arrived and whose body is still to be read.

    Reading ends at the deadline, or never if it is None; the bytes of the body move the deadline,
    and `on_received` is called with their number. The body may pause for `stall_timeout` seconds.
    `failed` tells whether the network failed or was silent for too long.
    """

    def __init__(
        self,
        response: httpx.Response,
        *,
        host: str,
        deadline: Deadline | None,
        on_received: Callable[[int], None],
    ) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.host = host
        self.deadline = deadline
        self.stall_timeout = STALL_TIMEOUT
        self.failed = False
        self._on_received = on_received
        self._response = response
        # httpx.Response has iterators too, but if these fail, they leave inner iterators open.
        self._chunks = aiter(cast("AsyncIterable[bytes]", response.stream))
        self._ended = False
        self._put_back = b""
        self._received = 0
        self._length = decimal(response.headers.get("content-length"))
        self._decoder = _Decoder(response.headers.get("content-encoding", ""), host)
        self._decoded: Iterator[bytes] = iter(())

    @property
    def announced_length(self) -> int | None:
        """The length of the whole body, if the response announces it and does not encode it."""
        return self._length if self._decoder.is_identity else None

    async def next_chunk(self) -> bytes:
        """Return the next bytes of the body, decoded, or b"" at its end.

        Raises:
            TransientError: the body broke off or stalled.
            DeadlineError: the deadline passed.
            ProtocolError: the body cannot be decoded.
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
        """Make `surplus`, the unused end of the last chunk, the next chunk."""
        self._put_back = surplus

    async def read(self, limit: int) -> bytearray:
        """Return the whole body; raises AnswerTooLargeError if it has more than `limit` bytes."""
        # The body is not copied from here on: it may be large.
        body = bytearray()
        announced = self.announced_length or 0
        while announced <= limit and (chunk := await self.next_chunk()):
            announced = max(announced, len(body) + len(chunk))
            if announced <= limit:
                body += chunk
        if announced > limit:
            raise AnswerTooLargeError(f"the response of {self.host} is larger than {limit:,} bytes")
        return body

    async def read_start(self, limit: int) -> bytes:
        """Return the first `limit` bytes, or fewer if the body ends or fails before."""
        body = bytearray()
        with suppress(TransientError, ProtocolError, DeadlineError):
            while len(body) < limit and (chunk := await self.next_chunk()):
                body += chunk
        return bytes(body[:limit])

    async def aclose(self) -> None:
        """End the exchange. If the body was not read to its end, the connection is closed."""
        if not self._ended:
            await self._unwind()
        with suppress(*HTTP_FAILURES):
            await self._response.aclose()

    async def _read(self) -> bytes:
        until = math.inf if self.deadline is None else self.deadline.until
        with trio.move_on_at(min(until, trio.current_time() + self.stall_timeout)):
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                self._ended = True
                self._check_length()
                return b""
            except HTTP_FAILURES as error:
                self._ended = self.failed = True
                raise network_error(error, self.host) from error
            self._received += len(chunk)
            if self._length is not None and self._received > self._length:
                self._check_length()
            if self.deadline is not None:
                self.deadline.received(len(chunk))
                self._on_received(len(chunk))
            return chunk
        self._ended = self.failed = True
        if trio.current_time() >= until:
            raise DeadlineError(f"the response of {self.host} did not end in time")
        raise TransientError(
            DeadlineError(f"{self.host} was silent for {self.stall_timeout:.0f} s")
        )

    def _check_length(self) -> None:
        if self._length is not None and self._received != self._length:
            came = f"{self._received:,} of {self._length:,} bytes arrived"
        elif not self._decoder.complete:
            came = "the compressed data has no end"
        else:
            return
        raise TransientError(UnreachableError(f"the response of {self.host} broke off: {came}"))

    async def _unwind(self) -> None:
        # The body comes through a chain of asynchronous generators. Closing the outermost one
        # leaves the others to the garbage collector. A cancelled read ends all of them.
        self._ended = True
        chunks = 0
        with suppress(*HTTP_FAILURES), trio.CancelScope(shield=True) as scope:
            scope.cancel()
            async for _ in self._chunks:
                chunks += 1
                if chunks > _MAX_BUFFERED_CHUNKS:
                    break


class _Decoder:
    """Decodes a body piece by piece: gzip, or no coding."""

    def __init__(self, coding: str, host: str) -> None:
        name = coding.strip().lower()
        self._unknown = "" if name in {"", "identity", "gzip", "x-gzip"} else name
        self._host = host
        self._gzip = zlib.decompressobj(_GZIP) if name in {"gzip", "x-gzip"} else None
        self._started = False

    @property
    def is_identity(self) -> bool:
        """Whether the body is not encoded."""
        return self._gzip is None and not self._unknown

    @property
    def complete(self) -> bool:
        """Whether the body may end here: no gzip stream is open."""
        return self._gzip is None or self._gzip.eof or not self._started

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded `data` in pieces of bounded size, some of them empty.

        Raises ProtocolError if the coding is unknown, or the data is broken.
        """
        if self._unknown:
            raise ProtocolError(
                f"{self._host} uses a content coding that was not requested: "
                f"{printable(self._unknown, 40)}"
            )
        if self._gzip is None:
            yield data
            return
        while data:
            if self._gzip.eof:
                # Several gzip files in sequence are one gzip file (RFC 1952 §2.2).
                self._gzip = zlib.decompressobj(_GZIP)
            self._started = True
            try:
                piece = self._gzip.decompress(data, _STEP)
            except zlib.error:
                raise ProtocolError(
                    f"the compression of the response of {self._host} is broken"
                ) from None
            data = self._gzip.unconsumed_tail or self._gzip.unused_data
            yield piece
