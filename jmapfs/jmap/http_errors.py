"""Converts HTTP statuses and network failures to errors of jmapfs that quote the server.

What a server sends may be long, HTML, or contain control characters or a secret. `sanitize` and
`errors.printable` make such text safe to show. A secret may contain the characters at which a text
is taken apart, so it is removed before.
"""

import html
import math
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx
import msgspec
import trio

from jmapfs.errors import (
    AuthenticationError,
    ForbiddenError,
    JmapfsError,
    ProtocolError,
    RequestError,
    UnreachableError,
    printable,
)
from jmapfs.protection import redact

HTTP_FAILURES = (
    httpx.HTTPError,
    httpx.StreamError,
    httpx.InvalidURL,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.BusyResourceError,
)
"""What sending a request and reading its response can raise."""

# The innermost cause has the most detail: which name was not found, or why a certificate is
# rejected.
_NETWORK_ERRORS: tuple[tuple[type[BaseException], str], ...] = (
    (httpx.ProxyError, "{host} makes no connection to the server: {reason}"),
    (httpx.ConnectTimeout, "{host} cannot be reached: no answer in time"),
    (httpx.TimeoutException, "{host} is silent"),
    (ssl.SSLError, "no TLS connection to {host}: {reason}"),
    (socket.gaierror, "{host} is not found: {reason}"),
    (ConnectionRefusedError, "{host} refuses the connection"),
)

LONGEST_RETRY_AFTER = 86_400.0
"""In seconds. A longer Retry-After is shortened to this time."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})

LIMIT = "urn:ietf:params:jmap:error:limit"
"""The problem type of a request that exceeds one of the server's limits (RFC 8620 §3.6.1)."""

_CREDENTIALS_REJECTED = frozenset({401, 403})
# Some servers answer 403, not 401, to a wrong password. These are their words.
_WRONG_SECRET = re.compile(
    r"\b(wrong|invalid|incorrect|bad|unknown|expired)\s+(\w+\s+){0,3}?"
    r"(user ?name|password|credentials?|login|token)\b"
    r"|\b(password|credentials?|login|token)\s+(\w+\s+)?(wrong|invalid|incorrect|expired|failed)\b"
    r"|\bauthentication fail",
    re.IGNORECASE,
)
_BUSY = frozenset({429, 503})
_BROKEN = frozenset({408, 500, 502, 504})
# These limits are about the content of a request, so waiting does not help.
_LASTING_LIMITS = frozenset({"maxSizeRequest", "maxCallsInRequest", "maxObjectsInGet"})

_MAX_REASON = 240
_MAX_DIGITS = 20
_MAX_MESSAGE = 200
# Enough for any error page. The regular expressions below are slow for megabytes.
_MAX_HTML = 16_384
# An `address` at the end of an error page has the names and versions of the server's software.
_INVISIBLE = re.compile(
    r"<(script|style|head|title|address)\b.*?(</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL
)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
# A parameter of a challenge has "=" after its name (RFC 9110 §11.6.1).
_SCHEME = re.compile(r"(?:^|,)\s*([^\s=,]+)(?=\s*(?:,|$)|\s+[^\s=])")
_TAG = re.compile(r"<[^<>]*>")
_HTML = re.compile(r"<\s*(!doctype|html|head|body|h\d|p|div|br|title)\b", re.IGNORECASE)


class ProxyFailure(httpx.TransportError):
    """The proxy cannot be reached, or does not connect. `proxy` names it for error texts."""

    def __init__(self, message: str, proxy: str) -> None:
        super().__init__(message)
        self.proxy = proxy


class TransientError(Exception):
    """A failure after which a retry may succeed. `error` is raised if no retry succeeds.

    `throttled` tells whether the server is busy, not broken. `retry_after` is the pause in seconds
    that the server asked for. `limited` tells that there were too many requests, and that the
    server works. This exception never leaves `jmap/`.
    """

    def __init__(
        self,
        error: JmapfsError,
        *,
        throttled: bool = False,
        retry_after: float | None = None,
        limited: bool = False,
    ) -> None:
        self.error = error
        self.limited = limited
        self.throttled = throttled
        self.retry_after = retry_after
        super().__init__(str(error))


def sanitize(body: bytes, limit: int) -> str:
    """Return the visible text of `body`, the beginning of a document, on one line without tags."""
    text = redact(body[:_MAX_HTML].decode("utf-8", "replace"), cut=True)
    if _HTML.search(text):
        text = html.unescape(_TAG.sub(" ", _INVISIBLE.sub(" ", text)))
    return printable(" ".join(text.split()), limit)


def network_error(error: Exception, host: str, remark: str = "") -> JmapfsError | TransientError:
    """Return the error to raise for a network failure: TransientError if a retry may succeed.

    If no connection was made, the text ends with `remark`.
    """
    if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
        return ProtocolError(f"a URL of {host} is not usable")
    causes = list(_causes(error))
    if isinstance(error, ProxyFailure):
        host, remark = error.proxy, ""
    elif not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        remark = ""
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            # A retry would receive the same certificate.
            reason = printable(getattr(cause, "verify_message", "") or str(cause), _MAX_REASON)
            return UnreachableError(f"the certificate of {host} is not accepted: {reason}{remark}")
    messages = (
        message.format(host=host, reason=_reason(cause))
        for cause in causes
        for kind, message in _NETWORK_ERRORS
        if isinstance(cause, kind)
    )
    text = next(messages, "")
    if not text:
        unreached = isinstance(error, (httpx.ConnectError, ProxyFailure))
        what = "cannot be reached" if unreached else "broke off"
        reasons = [str(cause) for cause in causes if str(cause)]
        text = f"{host} {what}: {reasons[-1] if reasons else type(error).__name__}"
    return TransientError(UnreachableError(printable(text, _MAX_REASON) + remark))


def _reason(cause: BaseException) -> str:
    # Some SSLErrors lack the attribute `reason`.
    return getattr(cause, "reason", None) or getattr(cause, "strerror", None) or str(cause)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its causes, its contexts, and the members of exception groups, each once."""
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


class _Problem(msgspec.Struct):
    """A problem report (RFC 9457), decoded leniently."""

    kind: str = msgspec.field(name="type", default="")
    title: str | None = None
    detail: str | None = None
    limit: str | None = None
    description: str | None = None


def http_error(
    status: int, headers: Mapping[str, str], body: bytes, *, host: str
) -> JmapfsError | TransientError:
    """Return the error to raise for a response with an unexpected status.

    `body` is the start of the response. The error is transient if the server is busy or broken:
    408, 429, 5xx, or a `limit` problem that ends after some time. A 401 can mean a wrong password,
    a wrong scope or throttling, so the error quotes the server. A 403 is a ForbiddenError, unless
    the server says that the secret is wrong.
    """
    problem = _problem(body)
    said = _message(problem, body)
    forbidden = status == HTTPStatus.FORBIDDEN and not _WRONG_SECRET.search(said)
    if status in _CREDENTIALS_REJECTED:
        challenge = _challenge(headers.get("www-authenticate", ""))
        said += f" (it asks for: {challenge})" if challenge else ""
    title = _status(status)
    text = f"{title}: {said}" if said else title
    if forbidden:
        return ForbiddenError(f"{host} does not permit this: {text}")
    if status in _CREDENTIALS_REJECTED:
        return AuthenticationError(f"{host} does not accept the credentials: {text}")
    if status in REDIRECTS:
        target = redirect_text(headers)
        return ProtocolError(
            f"{host} redirects a request ({title}) to {target}; only discovery follows redirects"
        )
    pause = retry_after(headers.get("retry-after"))
    if status in _BUSY:
        asked = "" if pause is None else f"; it asks to wait {wait_text(pause)}"
        return TransientError(
            UnreachableError(f"{host} is busy: {text}{asked}"),
            throttled=True,
            retry_after=pause,
            limited=status == HTTPStatus.TOO_MANY_REQUESTS,
        )
    limit = problem.limit or ""
    error = RequestError(
        f"{host} answers {text}" + (f" (limit: {printable(limit, 80)})" if limit else ""),
        status=status,
        kind=problem.kind,
        limit=limit,
    )
    if problem.kind == LIMIT and limit not in _LASTING_LIMITS:
        return TransientError(error, throttled=True, retry_after=pause)
    return TransientError(error) if status in _BROKEN else error


def wait_text(seconds: float) -> str:
    """Return a time to wait as text, rounded up: "30 s", "5 min" or "2 h"."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{math.ceil(seconds / unit)} {name}"
    return f"{math.ceil(seconds)} s"


def decimal(text: str | None) -> int | None:
    """Return a header field's number without a sign, such as a length; None if it is no number."""
    if text is None or not text.isascii() or not text.isdigit():
        return None
    digits = text.lstrip("0") or "0"
    # Python converts no more than 4,300 digits. A number of 20 digits already means "without end".
    return int(digits) if len(digits) <= _MAX_DIGITS else int("9" * _MAX_DIGITS)


def retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110 §10.2.3), or None.

    The result is between 0 and LONGEST_RETRY_AFTER, or None if the header is missing or unreadable.
    """
    if value is None:
        return None
    text = value.strip()
    if (number := decimal(text)) is not None:
        return float(min(number, int(LONGEST_RETRY_AFTER)))
    # The parser raises other errors than ValueError for dates that only look like dates. A date at
    # the end of the calendar has no equivalent in UTC.
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def redirect_text(headers: Mapping[str, str]) -> str:
    """Return the target of a redirect. Its query may contain a secret, so it is left out."""
    target = re.split(r"[?#]", redact(headers.get("location", "")), maxsplit=1)[0]
    return printable(re.sub(r"//[^/@]*@", "//", target), _MAX_MESSAGE) or "an unnamed place"


def _challenge(header: str) -> str:
    """Return a challenge, or of several only the schemes: their parameters help nobody."""
    header = redact(header)
    schemes = _SCHEME.findall(_QUOTED.sub("", header))
    return printable(", ".join(schemes) if len(schemes) > 1 else header, _MAX_MESSAGE)


def _problem(body: bytes) -> _Problem:
    try:
        return msgspec.json.decode(body, type=_Problem)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _Problem()


def _message(problem: _Problem, body: bytes) -> str:
    if text := problem.detail or problem.title or problem.description:
        return printable(text, _MAX_MESSAGE)
    # JSON without such a text is not meant for people. If it is a problem report, show its type.
    if body.lstrip()[:1] in {b"{", b"["}:
        return printable(problem.kind, _MAX_MESSAGE)
    return sanitize(body, _MAX_MESSAGE)


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
