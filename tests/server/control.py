"""The control endpoint: lets tests in another process change and inspect the server.

Its URL is /control/TOKEN/; it speaks JSON and answers loopback only. Quirks do not affect it: a
test can reset a server that hangs. Its client is `tests.server.control_client`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from secrets import compare_digest
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .account import Account, OperationError, operate
from .auth import Credentials

if TYPE_CHECKING:
    from .app import MailServer


class Control:
    """The ASGI application behind the token."""

    def __init__(self, server: MailServer) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        host = request.client.host if request.client is not None else ""
        if host not in {"127.0.0.1", "::1"} or not compare_digest(
            request.path_params["token"], self._server.control_token
        ):
            response = Response(status_code=404)
        else:
            response = self._answer(request, body)
        await response(scope, receive, send)

    def _answer(self, request: Request, body: bytes) -> Response:
        document: dict[str, Any] = {}
        try:
            if body:
                document = msgspec.json.decode(body, type=dict[str, Any])
            result = self._act(request.method, request.path_params["action"], document)
        except (OperationError, LookupError, ValueError) as error:
            return Response(msgspec.json.encode({"error": str(error)}), 400)
        if isinstance(result, bytes):
            return Response(result, media_type="application/octet-stream")
        return Response(msgspec.json.encode({"result": result}), media_type="application/json")

    def _act(self, method: str, action: str, document: dict[str, Any]) -> Any:
        server = self._server
        server.apply_blob_ids()
        match method, action:
            case "GET", "quirks":
                return server.quirks
            case "POST", "quirks":
                server.quirks.update(document)
                return server.apply_blob_ids()
            case "DELETE", "quirks":
                return server.quirks.reset()
            case "GET", "counts":
                return server.counts
            case "DELETE", "counts":
                return server.counts.reset()
            case "POST", "call":
                account = self._account(document)
                return operate(account, document["method"], document["arguments"])
            case "POST", "dump":
                return dump(self._account(document))
            case "POST", "blob":
                blob = self._account(document).blobs.read(document["blob_id"])
                if blob is None:
                    raise OperationError("unknown blob")
                return blob
            case "POST", "credentials":
                server.credentials = msgspec.convert(document, Credentials)
                return None
            case "POST", "account":
                server.add_account(Account(**document))
                return None
            case "POST", "save":
                return server.save(Path(document["path"]))
            case _:
                raise OperationError(f"cannot {method} {action}")

    def _account(self, document: dict[str, Any]) -> Account:
        account_id = document.get("account")
        return self._server.primary if account_id is None else self._server.accounts[account_id]


def dump(account: Account) -> dict[str, Any]:
    """Return the whole account as plain values, with the SHA-256 of each email."""
    return {
        "account_id": account.id,
        "states": account.states,
        "mailboxes": list(account.mailboxes.values()),
        "emails": [
            {
                "id": email.id,
                "blob_id": email.blob_id,
                "thread_id": email.thread_id,
                "sha256": hashlib.sha256(account.blobs.read(email.blob_id) or b"").hexdigest(),
                "size": email.size,
                "received_at": email.received_at,
                "mailbox_ids": sorted(email.mailbox_ids),
                "keywords": sorted(email.keywords),
                "subject": account.header(email).subject,
            }
            for email in account.emails.values()
        ],
    }
