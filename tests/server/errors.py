"""The two kinds of error in JMAP (RFC 8620 §3.6): of a request and of a method call."""

from __future__ import annotations

from typing import Any


class RequestProblemError(Exception):
    """The whole request fails with an HTTP status and a problem document (RFC 7807)."""

    def __init__(self, status: int, kind: str, detail: str, limit: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.document: dict[str, Any] = {
            "type": f"urn:ietf:params:jmap:error:{kind}" if kind != "about:blank" else kind,
            "status": status,
            "detail": detail,
        }
        if limit is not None:
            self.document["limit"] = limit


class MethodError(Exception):
    """One method call fails; the others in the request are executed."""

    def __init__(self, kind: str, description: str | None = None) -> None:
        super().__init__(kind)
        self.response: dict[str, Any] = {"type": kind}
        if description is not None:
            self.response["description"] = description
