"""Failures of the network, and of HTTP itself, as errors a person can act on.

httpx wraps what happened twice or more; the reason that helps (which name was not found, what is
wrong with the certificate) is somewhere down the chain of causes.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Iterator

import h2.exceptions
import httpx
import trio

from jmapfs.errors import JmapfsError, ProtocolError, UnreachableError
from jmapfs.jmap.retrying import TransientError
from jmapfs.jmap.wording import printable

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


def network_failure(error: Exception, host: str) -> JmapfsError | TransientError:
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
