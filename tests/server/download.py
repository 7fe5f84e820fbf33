"""The download endpoint (RFC 8620 §6.2) and its faults."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .blob_methods import corrupted, resized
from .endpoint import Answer, wait_for_disconnect
from .errors import RequestProblemError

if TYPE_CHECKING:
    from .app import MailServer


async def serve_download(server: MailServer, request: Request) -> Answer:
    """Answer GET /jmap/download/{account}/{blob}/{name}?accept={type}."""
    blob_id = request.path_params["blob"]
    server.counts.blobs[blob_id] += 1
    account = server.accounts.get(request.path_params["account"])
    body = account.blobs.read(blob_id) if account is not None else None
    fault = server.quirks.download_fault_for(blob_id)
    if body is None or fault == "not-found":
        raise RequestProblemError(404, "about:blank", "No such blob")
    match fault:
        case "wrong-bytes":
            body = corrupted(body)
        case "wrong-length":
            body = resized(body, server.quirks.wrong_length_by)
        case "short" | "cut" | "stall":
            return _BrokenDownload(body, fault)
        case _:
            pass
    lie = server.liar.content(server.quirks, account, blob_id, "download") if account else None
    is_page = lie is not None and server.quirks.lie == "html"
    headers = {
        "content-type": "text/html; charset=utf-8"
        if is_page
        else request.query_params.get("accept") or "application/octet-stream",
        "content-disposition": f"attachment; filename*=utf-8''{quote(request.path_params['name'])}",
        "cache-control": "private, immutable, max-age=31536000",
    }
    return Response(body if lie is None else lie, headers=headers)


class _BrokenDownload:
    """Sends half a blob, and then ends or stalls.

    "short" announces the whole length. "cut" announces none, so that only the missing last chunk
    shows the fault.
    """

    def __init__(self, body: bytes, fault: str) -> None:
        self._body = body
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        headers = [(b"content-type", b"application/octet-stream")]
        if self._fault != "cut":
            headers.append((b"content-length", str(len(self._body)).encode()))
        half = self._body[: len(self._body) // 2]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": half, "more_body": True})
        if self._fault == "stall":
            await wait_for_disconnect(receive)
        # Hypercorn closes a connection whose response is unfinished.
