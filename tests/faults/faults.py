"""The faults that the proxy injects, as a table: what each one does with the answer of the server.

A fault is a function. It gets the good answer, and yields the steps that the proxy takes instead:
bytes to send, seconds to pause, and at its end what happens to the connection.
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import repeat


class Step(Enum):
    """What the proxy does besides sending and pausing."""

    FORWARD = auto()  # send the good answer
    GARBLE = auto()  # flip a bit of the next TLS record
    CLOSE = auto()  # end the connection, as after the last byte of an answer
    RESET = auto()  # … with a TCP reset
    STALL = auto()  # keep the connection open, and send nothing more


Steps = Iterable[bytes | float | Step]


@dataclass(frozen=True)
class Answer:
    """A good answer. The body of an event stream is its first kilobyte: comments only.

    `elsewhere` is the URL of another host, and `here` the URL of the request.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    here: str = ""
    elsewhere: str = ""

    def head(self, *headers: str, coding: str = "") -> bytes:
        """Return the head of this answer with these header lines, which state the framing."""
        kept = [f"{name}: {value}" for name, value in self.headers]
        if coding:
            headers = (*headers, f"Content-Encoding: {coding}")
        return head(self.status, *kept, *headers)

    def framed(self) -> bytes:
        """Return the whole answer."""
        return self.head(f"Content-Length: {len(self.body)}") + self.body


@dataclass(frozen=True)
class Fault:
    """A fault: its name in tables, what happens in words, and how it is done.

    A fault `at_connect` begins when a connection is opened, so it affects any kind of request. A
    fault with `tls` needs TLS. `waits` says that an affected client waits until it gives up, and
    `asks_to_wait` that the answer asks it to try again later. Only a checksum shows the fault
    `needs_sha1`. After a fault that `needs_sync`, a mount asks again only after minutes or hours,
    or at once if the user runs `jmapfs sync`.
    """

    name: str
    text: str
    steps: Callable[[Answer], Steps]
    at_connect: bool = False
    tls: bool = False
    waits: bool = False
    asks_to_wait: bool = False
    needs_sha1: bool = False
    needs_sync: bool = False


def head(status: int, *headers: str) -> bytes:
    """Return a head of HTTP/1.1."""
    return "\r\n".join([f"HTTP/1.1 {status} Fault", *headers, "", ""]).encode("latin-1")


def answer(status: int, body: str, *headers: str, media_type: str = "text/plain") -> bytes:
    """Return a whole answer that no server behind the proxy gave."""
    content = body.encode()
    own = (f"Content-Type: {media_type}", f"Content-Length: {len(content)}")
    return head(status, *own, *headers) + content


def _always(*steps: bytes | float | Step) -> Callable[[Answer], Steps]:
    return lambda _: steps


def _in_pieces(data: bytes, size: int, pause: float) -> Iterator[bytes | float]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
        yield pause


def _throttle(good: Answer) -> Steps:
    yield from _in_pieces(good.framed(), 32 * 1024, 0.25)


def _trickle(good: Answer) -> Steps:
    yield good.head(f"Content-Length: {len(good.body)}")
    yield from _in_pieces(good.body, 1, 1.0)


def _trickle_endlessly(good: Answer) -> Steps:
    yield good.head(f"Content-Length: {2**50}")
    yield good.body[:100]
    for _ in repeat(None):
        yield 1.0
        yield b"x"


def _cut_head(good: Answer) -> Steps:
    yield good.framed()[:20]
    yield Step.CLOSE


def _cut(good: Answer) -> Steps:
    yield good.head(f"Content-Length: {len(good.body)}") + good.body[: len(good.body) // 2]
    yield Step.CLOSE


def _cut_last_byte(good: Answer) -> Steps:
    yield good.framed()[:-1]
    yield Step.CLOSE


def _stall_headers(good: Answer) -> Steps:
    yield good.framed()[:20]
    yield Step.STALL


def _stall_body(good: Answer) -> Steps:
    yield good.head(f"Content-Length: {len(good.body)}") + good.body[: len(good.body) // 2]
    yield Step.STALL


def _reset_body(good: Answer) -> Steps:
    yield good.head(f"Content-Length: {len(good.body)}") + good.body[: len(good.body) // 2]
    yield 0.05
    yield Step.RESET


def _garble(good: Answer) -> Steps:
    # The top bit: in JSON, another one may give another valid text, which only TLS can detect.
    body = bytearray(good.body or b"\0")
    body[len(body) // 2] ^= 0x80
    yield good.head(f"Content-Length: {len(body)}") + body


def _longer(good: Answer) -> Steps:
    yield good.framed() + b"and more than was stated" * 100
    yield Step.CLOSE


def _shorter(good: Answer) -> Steps:
    yield good.head(f"Content-Length: {len(good.body) + 1000}") + good.body
    yield Step.CLOSE


def _without_length(good: Answer) -> Steps:
    yield good.head("Connection: close") + good.body
    yield Step.CLOSE


def _half_without_length(good: Answer) -> Steps:
    yield good.head("Connection: close") + good.body[: len(good.body) // 2]
    yield Step.CLOSE


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _bad_chunks(good: Answer) -> Steps:
    yield good.head("Transfer-Encoding: chunked")
    yield _chunk(good.body[: len(good.body) // 2]) + b"zz\r\n" + good.body
    yield Step.CLOSE


def _unfinished_chunks(good: Answer) -> Steps:
    yield good.head("Transfer-Encoding: chunked") + _chunk(good.body)
    yield Step.CLOSE


def _coded(good: Answer, body: bytes) -> bytes:
    return good.head(f"Content-Length: {len(body)}", coding="gzip") + body


def _truncated_gzip(good: Answer) -> Steps:
    body = gzip.compress(good.body)
    yield _coded(good, body[: len(body) // 2])


def _not_gzip(good: Answer) -> Steps:
    yield _coded(good, good.body)


def _gzip_of_other_data(good: Answer) -> Steps:
    body = bytearray(gzip.compress(good.body))
    body[-8] ^= 1
    yield _coded(good, bytes(body))


@functools.cache
def _zeros() -> bytes:
    return gzip.compress(bytes(400 * 2**20), compresslevel=1)


def _gzip_bomb(good: Answer) -> Steps:
    # A gzip file may consist of several.
    yield _coded(good, gzip.compress(good.body) + _zeros())


def _redirect_elsewhere(good: Answer) -> Steps:
    yield answer(302, "", f"Location: {good.elsewhere}")


def _redirect_here(good: Answer) -> Steps:
    yield answer(302, "", f"Location: {good.here}")


def _endless_headers(good: Answer) -> Steps:
    yield head(good.status)[:-2]
    line = b"X-Header: " + b"y" * 1000 + b"\r\n"
    for _ in repeat(None):
        yield line * 16
        yield 0.05


def _endless_1xx(good: Answer) -> Steps:
    del good
    for _ in repeat(None):
        yield b"HTTP/1.1 102 Processing\r\n\r\n" * 16
        yield 0.05


_PORTAL = "<!DOCTYPE html><html><title>Welcome</title><body>Please accept the terms.</body></html>"
_BAD_GATEWAY = "<html><head><title>502</title></head><body><h1>502 Bad Gateway</h1></body></html>"
_BEYOND_CALENDAR = "Fri, 31 Dec 99999 23:59:59 GMT"


def _status(status: int, text: str, *headers: str) -> Callable[[Answer], Steps]:
    return _always(answer(status, text, *headers))


FAULTS = (
    # Slow
    Fault("delay", "The answer comes after 3 seconds.", _always(3.0, Step.FORWARD)),
    Fault("throttle", "The answer comes at 128 KiB a second.", _throttle),
    Fault("trickle", "The body comes at one byte a second.", _trickle, waits=True),
    Fault(
        "endless trickle",
        "The body is said to have 2^50 bytes, and comes at one byte a second.",
        _trickle_endlessly,
        waits=True,
    ),
    # Broken connections
    Fault("refused", "A new connection is reset.", _always(Step.RESET), at_connect=True),
    Fault(
        "stall at connect",
        "A new connection is accepted, and nothing is sent, not even a TLS handshake.",
        _always(Step.STALL),
        at_connect=True,
        tls=True,
        waits=True,
    ),
    Fault("no answer", "The connection ends after the request.", _always(Step.CLOSE)),
    Fault("reset", "The connection is reset after the request.", _always(Step.RESET)),
    Fault("silence", "Nothing is sent after the request.", _always(Step.STALL), waits=True),
    Fault("cut in the head", "The connection ends within the status line.", _cut_head),
    Fault("stall in the head", "The status line stops.", _stall_headers, waits=True),
    Fault("cut in the body", "The connection ends in the middle of the body.", _cut),
    Fault("cut last byte", "The connection ends one byte too early.", _cut_last_byte),
    Fault("stall in the body", "The body stops in its middle.", _stall_body, waits=True),
    Fault("reset in the body", "The connection is reset in the body.", _reset_body),
    # Wrong bytes
    Fault(
        "garbled byte",
        "The top bit of one byte of the body is flipped.",
        _garble,
        needs_sha1=True,
    ),
    Fault(
        "garbled on the wire",
        "One bit of the encrypted answer is flipped.",
        _always(Step.GARBLE, Step.FORWARD, Step.CLOSE),
        tls=True,
    ),
    # Statuses
    Fault(
        "401",
        "Status 401.",
        _status(401, "No", 'WWW-Authenticate: Basic realm="x"'),
        needs_sync=True,
    ),
    Fault("403", "Status 403.", _status(403, "Forbidden")),
    Fault("404", "Status 404.", _status(404, "Not found")),
    Fault("413", "Status 413.", _status(413, "Too large")),
    Fault("429", "Status 429 without Retry-After.", _status(429, "Slow down")),
    Fault(
        "429, 3 s",
        "Status 429 with `Retry-After: 3`.",
        _status(429, "", "Retry-After: 3"),
        asks_to_wait=True,
    ),
    Fault(
        "429, absurd",
        "Status 429 with `Retry-After: 99999999999`.",
        _status(429, "", "Retry-After: 99999999999"),
        asks_to_wait=True,
        needs_sync=True,
    ),
    Fault(
        "429, no date",
        f"Status 429 with `Retry-After: {_BEYOND_CALENDAR}`.",
        _status(429, "", f"Retry-After: {_BEYOND_CALENDAR}"),
    ),
    Fault("500", "Status 500.", _status(500, "Internal error")),
    Fault(
        "502",
        "Status 502 with an HTML page.",
        _always(answer(502, _BAD_GATEWAY, media_type="text/html")),
    ),
    Fault("503", "Status 503.", _status(503, "Maintenance")),
    Fault("redirect elsewhere", "A redirect to another host.", _redirect_elsewhere),
    Fault("redirect loop", "A redirect to the URL of the request.", _redirect_here),
    # Framing
    Fault("endless headers", "Header lines without an end.", _endless_headers),
    Fault("endless 1xx", "Status 102 without an end.", _endless_1xx, waits=True),
    Fault("longer body", "The body is longer than stated.", _longer),
    Fault("shorter body", "The body is shorter than stated.", _shorter),
    Fault("no length", "No length is stated; the connection ends after the body.", _without_length),
    Fault("no length, half", "… and it ends after half of the body.", _half_without_length),
    Fault("bad chunks", "The second chunk has no valid length.", _bad_chunks),
    Fault("unfinished chunks", "The last chunk is missing.", _unfinished_chunks),
    # Coding
    Fault("truncated gzip", "Half of a gzip body, with its right length.", _truncated_gzip),
    Fault("not gzip", "A body that is said to be gzip, but is not.", _not_gzip),
    Fault("gzip checksum", "A gzip body with a wrong checksum.", _gzip_of_other_data),
    Fault("gzip bomb", "A gzip body of 400 MiB of zeros after the good answer.", _gzip_bomb),
    # Somebody else's answer
    Fault(
        "portal",
        "Status 200 with the HTML page of a captive portal.",
        _always(answer(200, _PORTAL, media_type="text/html")),
    ),
    Fault(
        "other JSON",
        "Status 200 with another JSON document.",
        _always(answer(200, '{"status": "ok"}', media_type="application/json")),
    ),
    Fault(
        "empty 200",
        "Status 200 without a body.",
        _always(answer(200, "", media_type="application/octet-stream")),
    ),
)

BY_NAME = {fault.name: fault for fault in FAULTS}
