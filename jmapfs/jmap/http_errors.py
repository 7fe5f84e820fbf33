"""HTTP answers that are not what was asked for, as errors in the server's own words.

A 401 can mean a wrong password, a wrong scope or throttling, and only the server knows which.

What a server says, made fit to be shown to a person.

Whatever comes from a server may be long, HTML, or meant for the terminal rather than its reader.

Failures of the network, and of HTTP itself, as errors a person can act on.

httpx wraps what happened twice or more; the reason that helps (which name was not found, what is
wrong with the certificate) is somewhere down the chain of causes.
"""

from __future__ import annotations

import html
import logging
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from http import HTTPStatus

import h2.exceptions
import httpx
import msgspec
import trio

from jmapfs.errors import (
    AuthenticationError,
    JmapfsError,
    ProtocolError,
    RequestError,
    UnreachableError,
)
from jmapfs.jmap.credentials import Credentials
from jmapfs.jmap.retry import TransientError, retry_after

_UNSEEN = re.compile(r"<(script|style|head|title)\b.*?(</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")
_HTML = re.compile(r"<\s*(!doctype|html|head|body|h\d|p|div|br|title)\b", re.IGNORECASE)

# Enough for any error page; the expressions above need not run over megabytes.
_LONGEST_TEXT = 16_384


def printable(text: str, limit: int) -> str:
    """Return `text` on one line of at most `limit` characters, without any control character."""
    seen = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(seen.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def sanitize(body: bytes, limit: int) -> str:
    """Return what a person would read in `body`, HTML tags removed, on one line."""
    text = body[:_LONGEST_TEXT].decode("utf-8", "replace")
    if _HTML.search(text):
        text = html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text)))
    return printable(text, limit)


logger = logging.getLogger(__name__)

_LONGEST_REASON = 240

HTTP_FAILURES = (
    httpx.HTTPError,
    httpx.StreamError,
    httpx.InvalidURL,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.BusyResourceError,
    # An HTTP/2 connection whose bookkeeping was upset by a cancellation fails its other requests
    # with one of these (httpcore 1.0: a semaphore released too often, a stream it forgot).
    h2.exceptions.H2Error,
    ValueError,
    KeyError,
    RuntimeError,
)
"""What httpx lets through: its own errors, and those of what is below it."""


def network_error(error: Exception, host: str) -> JmapfsError | TransientError:
    """Return what to raise for one of HTTP_FAILURES: transient where another try may help."""
    if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
        return ProtocolError(f"{host} cannot be asked: the URL is not usable")
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            # Trying again does not mend a certificate.
            reason = printable(getattr(cause, "verify_message", "") or str(cause), _LONGEST_REASON)
            return UnreachableError(f"the certificate of {host} is not accepted: {reason}")
    if not isinstance(error, (httpx.HTTPError, OSError)):
        logger.info("an HTTP connection to %s is upset", host, exc_info=error)
    return TransientError(UnreachableError(printable(_text(error, host), _LONGEST_REASON)))


def _text(error: Exception, host: str) -> str:
    if isinstance(error, httpx.TimeoutException):
        connecting = isinstance(error, httpx.ConnectTimeout)
        return f"{host} cannot be reached: no answer in time" if connecting else f"{host} is silent"
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            # Not every SSLError has the reason that its type promises.
            return f"no TLS connection to {host}: {getattr(cause, 'reason', None) or cause}"
        if isinstance(cause, socket.gaierror):
            return f"the name {host} is not found: {cause.strerror or cause}"
        if isinstance(cause, ConnectionRefusedError):
            return f"{host} refuses the connection"
    broken = "cannot be reached" if isinstance(error, httpx.ConnectError) else "broke off"
    return f"{host} {broken}: {_last_reason(error)}"


def _last_reason(error: BaseException) -> str:
    reasons = [str(cause) for cause in _causes(error) if str(cause)]
    return reasons[-1] if reasons else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk an error, what caused it and what was gathered in groups on the way, each once."""
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            pending.extend(current.exceptions)
        pending.extend(
            cause for cause in (current.__context__, current.__cause__) if cause is not None
        )


REDIRECTS = frozenset({301, 302, 303, 307, 308})

LIMIT = "urn:ietf:params:jmap:error:limit"
"""The problem type of a request that passes one of the server's limits (RFC 8620 §3.6.1)."""

# Of the limits, these are about what was asked, not about when: waiting does not help.
_LASTING_LIMITS = frozenset({"maxSizeRequest", "maxCallsInRequest", "maxObjectsInGet"})
_BROKEN = frozenset({408, 500, 502, 504})
_THROTTLED = frozenset({429, 503})
_LONGEST_WORDS = 200


class _Problem(msgspec.Struct):
    """A problem report (RFC 9457), read as loosely as it is written."""

    kind: str = msgspec.field(name="type", default="")
    title: str | None = None
    detail: str | None = None
    limit: str | None = None
    description: str | None = None

    def words(self) -> str:
        return self.detail or self.title or self.description or ""


def http_error(
    status: int, headers: Mapping[str, str], body: bytes, *, host: str, credentials: Credentials
) -> JmapfsError | TransientError:
    """Return what to raise for an answer with an unexpected status.

    `body` is its beginning. Transient for a busy or broken server: 408, 429, 5xx, and the
    `limit` problem where waiting helps.
    """
    problem = _problem(body)
    said = _words(problem, body)
    if status in {401, 403}:
        asked = printable(headers.get("www-authenticate", ""), _LONGEST_WORDS)
        said = said + (f" (it asks for: {asked})" if asked else "")
    text = credentials.redact(f"{_status(status)}: {said}" if said else _status(status))
    if status in {401, 403}:
        return AuthenticationError(f"{host} does not accept the credentials: {text}")
    if status in REDIRECTS:
        return ProtocolError(
            f"{host} redirects a request elsewhere ({_status(status)}), which is not followed: "
            "only discovery may be redirected"
        )
    if status in _THROTTLED:
        return TransientError(
            UnreachableError(f"{host} is busy: {text}"),
            throttled=True,
            retry_after=retry_after(headers.get("retry-after")),
        )
    limit = printable(problem.limit or "", 80)
    error = RequestError(
        f"{host} answers {text}" + (f" (limit: {limit})" if limit else ""),
        status=status,
        kind=problem.kind,
        limit=limit,
    )
    if problem.kind == LIMIT and limit not in _LASTING_LIMITS:
        return TransientError(
            error, throttled=True, retry_after=retry_after(headers.get("retry-after"))
        )
    return TransientError(error) if status in _BROKEN else error


def _problem(body: bytes) -> _Problem:
    try:
        return msgspec.json.decode(body, type=_Problem)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _Problem()


def _words(problem: _Problem, body: bytes) -> str:
    if problem.words():
        return printable(problem.words(), _LONGEST_WORDS)
    # Other JSON is not meant for people; a problem report without words has its type to say.
    if body.lstrip()[:1] in {b"{", b"["}:
        return printable(problem.kind, _LONGEST_WORDS)
    return sanitize(body, _LONGEST_WORDS)


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
