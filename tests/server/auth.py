"""Authentication: Basic and Bearer (RFC 8620 §1.7 leaves it to HTTP)."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from secrets import compare_digest

import msgspec
from starlette.responses import Response


@dataclass
class Credentials:
    """The only user. None as password or token disables Basic or Bearer."""

    username: str = "alice@example.org"
    password: str | None = "secret"
    token: str | None = "token-of-alice"

    def accept(self, authorization: str | None) -> bool:
        """Return whether an Authorization header field is valid."""
        scheme, _, value = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and self.token is not None:
            return _same(value.strip(), self.token)
        if scheme.lower() == "basic" and self.password is not None:
            try:
                decoded = base64.b64decode(value, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return False
            return _same(decoded, f"{self.username}:{self.password}")
        return False


def problem(status: int, document: dict[str, object], **headers: str) -> Response:
    """Return a problem document (RFC 7807) as a response."""
    return Response(
        msgspec.json.encode(document),
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
        media_type="application/problem+json",
    )


def unauthorized() -> Response:
    """Ask for credentials."""
    return problem(
        401,
        {"type": "about:blank", "status": 401, "detail": "Authorization needed"},
        www_authenticate='Basic realm="JMAP", charset="UTF-8", Bearer realm="JMAP"',
    )


def _same(given: str, wanted: str) -> bool:
    return compare_digest(given.encode(), wanted.encode())
