"""HTTP answers that are not what was asked for, as errors in the server's own words.

A 401 can mean a wrong password, a wrong scope or throttling, and only the server knows which.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from jmapfs.errors import (
    AuthenticationError,
    JmapfsError,
    ProtocolError,
    RequestError,
    UnreachableError,
)
from jmapfs.jmap.credentials import Credentials
from jmapfs.jmap.retrying import TransientError, retry_after
from jmapfs.jmap.wording import plain_text, printable

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


def refusal(
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
    return plain_text(body, _LONGEST_WORDS)


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
