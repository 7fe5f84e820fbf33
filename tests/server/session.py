"""The session resource (RFC 8620 §2) and its faults."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from .quirks import CYRUS_MAIL

if TYPE_CHECKING:
    from .app import MailServer

CORE = "urn:ietf:params:jmap:core"
MAIL = "urn:ietf:params:jmap:mail"
API_PATH = "/jmap/api"
_LOGIN_PAGE = "<!doctype html><title>Log in</title><form method=post><input name=user></form>"


def build_session(server: MailServer, base_url: str) -> dict[str, Any]:
    """Return the Session object, with URLs below `base_url` ("" makes them relative)."""
    quirks = server.quirks
    capabilities: dict[str, Any] = {
        CORE: {
            "maxSizeUpload": 50_000_000,
            "maxConcurrentUpload": 4,
            "maxSizeRequest": quirks.max_size_request,
            "maxConcurrentRequests": quirks.max_concurrent_requests,
            "maxCallsInRequest": quirks.max_calls_in_request,
            "maxObjectsInGet": quirks.max_objects_in_get,
            "maxObjectsInSet": 500,
            "collationAlgorithms": ["i;ascii-casemap"],
        }
    }
    account_capabilities: dict[str, Any] = {CORE: {}}
    if quirks.mail_capability:
        capabilities[MAIL] = {}
        account_capabilities[MAIL] = {
            "maxMailboxesPerEmail": None,
            "maxMailboxDepth": None,
            "maxSizeMailboxName": 1000,
            "maxSizeAttachmentsPerEmail": 50_000_000,
            "emailQuerySortOptions": ["receivedAt"],
            "mayCreateTopLevelMailbox": False,
        }
    if quirks.blob_get:
        capabilities[quirks.blob_capability] = {}
        account_capabilities[quirks.blob_capability] = {
            "maxSizeBlobSet": None,
            "maxDataSources": 64,
            "supportedTypeNames": ["Email"],
            "supportedDigestAlgorithms": quirks.digests,
        }
    if quirks.sha1_blob_ids:
        capabilities[CYRUS_MAIL] = {}
    accounts = {
        account.id: {
            "name": account.name,
            "isPersonal": account.is_personal,
            "isReadOnly": account.is_read_only,
            "accountCapabilities": None
            if quirks.account_capabilities_null
            else account_capabilities,
        }
        for account in server.accounts.values()
    }
    session: dict[str, Any] = {
        "capabilities": capabilities,
        "accounts": accounts,
        "primaryAccounts": dict.fromkeys(account_capabilities, server.primary.id),
        "username": server.credentials.username,
        "apiUrl": base_url + API_PATH,
        "downloadUrl": base_url + "/jmap/download/{accountId}/{blobId}/{name}?accept={type}",
        "uploadUrl": base_url + "/jmap/upload/{accountId}/",
        "eventSourceUrl": base_url
        + "/jmap/eventsource?types={types}&closeafter={closeafter}&ping={ping}",
        **quirks.session_overrides,
    }
    return session


def session_state(server: MailServer) -> str:
    """Return a state that changes with the session object, unless a test has set it."""
    if fixed := server.quirks.session_overrides.get("state"):
        return str(fixed)
    text = msgspec.json.encode(build_session(server, ""))
    return hashlib.blake2s(text, digest_size=6).hexdigest()


async def serve_session(server: MailServer, request: Request) -> Response:
    """Answer GET /session."""
    quirks = server.quirks
    base_url = f"{request.url.scheme}://{request.url.netloc}" if quirks.absolute_urls else ""
    session = {**build_session(server, base_url), "state": session_state(server)}
    body = msgspec.json.encode(quirks.with_odd_values("session", session))
    match quirks.session_body:
        case "html":
            return HTMLResponse(_LOGIN_PAGE)
        case "not-json":
            body = b"Service ready."
        case "truncated":
            body = body[: len(body) // 2]
        case "wrong-types":
            wrong = {"capabilities": [], "accounts": "none", "primaryAccounts": 7, "apiUrl": None}
            body = msgspec.json.encode({**session, **wrong})
        case "good":
            pass
    headers = {"cache-control": "no-cache, no-store, must-revalidate"}
    return Response(body, media_type="application/json", headers=headers)


async def serve_well_known(server: MailServer, request: Request) -> Response:
    """Answer GET /.well-known/jmap, by default with a redirect."""
    if server.quirks.redirect_well_known:
        return RedirectResponse("/session")
    return await serve_session(server, request)
