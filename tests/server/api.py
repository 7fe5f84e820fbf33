"""The API endpoint (RFC 8620 §3): executes method calls and resolves result references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .blob_methods import blob_get
from .email_methods import email_changes, email_get, thread_changes, thread_get
from .errors import MethodError, RequestProblemError
from .mailbox_methods import mailbox_changes, mailbox_get, mailbox_query
from .query import begin_page, email_query
from .session import CORE, MAIL, build_session, session_state

if TYPE_CHECKING:
    from .app import MailServer

Invocation = tuple[str, dict[str, Any], str]
Method = Callable[["MailServer", dict[str, Any]], dict[str, Any]]

_MAIL_METHODS: dict[str, Method] = {
    "Mailbox/get": mailbox_get,
    "Mailbox/changes": mailbox_changes,
    "Mailbox/query": mailbox_query,
    "Email/get": email_get,
    "Email/query": email_query,
    "Email/changes": email_changes,
    "Thread/get": thread_get,
    "Thread/changes": thread_changes,
}


async def serve_api(server: MailServer, request: Request) -> Response:
    """Answer POST /jmap/api."""
    using, calls = _parse(server, request, await request.body())
    responses: list[Invocation] = []
    for name, arguments, call_id in calls:
        server.counts.methods[name] += 1
        try:
            response = _answer(server, using, name, arguments, responses)
        except MethodError as error:
            responses.append(("error", error.response, call_id))
        else:
            responses.append((name, response, call_id))
    body = msgspec.json.encode(
        {"methodResponses": responses, "sessionState": session_state(server)}
    )
    return Response(body, media_type="application/json")


def _parse(server: MailServer, request: Request, body: bytes) -> tuple[set[str], list[Invocation]]:
    quirks = server.quirks
    if len(body) > quirks.max_size_request:
        raise RequestProblemError(400, "limit", "The request is too large", "maxSizeRequest")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if media_type != "application/json":
        raise RequestProblemError(400, "notJSON", "The content type is not application/json")
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise RequestProblemError(400, "notJSON", str(error)) from None
    match document:
        case {"using": list(using), "methodCalls": list(raw_calls)}:
            pass
        case _:
            raise RequestProblemError(400, "notRequest", "Not a Request object")
    known = build_session(server, "")["capabilities"]
    for each in using:
        if each not in known:
            raise RequestProblemError(400, "unknownCapability", f"{each} is not supported")
    if len(raw_calls) > quirks.max_calls_in_request:
        raise RequestProblemError(400, "limit", "Too many calls", "maxCallsInRequest")
    calls: list[Invocation] = []
    for each in raw_calls:
        match each:
            case [str(name), dict(arguments), str(call_id)]:
                calls.append((name, arguments, call_id))
            case _:
                raise RequestProblemError(400, "notRequest", "Not a method call")
    return set(using), calls


def _answer(
    server: MailServer,
    using: set[str],
    name: str,
    arguments: dict[str, Any],
    responses: list[Invocation],
) -> dict[str, Any]:
    if error := server.quirks.error_for(name):
        raise MethodError(error, "Requested by the test")
    resolved = _resolve(arguments, responses)
    if name == "Email/get" and arguments.get("ids") and arguments["accountId"] in server.accounts:
        begin_page(server, server.accounts[arguments["accountId"]])
    if name == "Core/echo" and CORE in using:
        return resolved
    if name == "Blob/get" and server.quirks.blob_capability in using:
        return blob_get(server, resolved)
    if name in _MAIL_METHODS and MAIL in using:
        return _MAIL_METHODS[name](server, resolved)
    raise MethodError("unknownMethod")


def _resolve(arguments: dict[str, Any], responses: Sequence[Invocation]) -> dict[str, Any]:
    """Return the arguments with each `#name` replaced by its value (§3.7)."""
    resolved = {}
    for name, value in arguments.items():
        if not name.startswith("#"):
            resolved[name] = value
        elif name[1:] in arguments:
            raise MethodError("invalidArguments", f"both {name} and {name[1:]} are given")
        else:
            resolved[name[1:]] = _look_up(value, responses)
    return resolved


def _look_up(reference: Any, responses: Sequence[Invocation]) -> Any:
    match reference:
        case {"resultOf": str(call_id), "name": str(name), "path": str(path)}:
            pass
        case _:
            raise MethodError("invalidArguments", "not a ResultReference")
    found = next((each for each in responses if each[2] == call_id), None)
    if found is None or found[0] != name:
        raise MethodError("invalidResultReference", f"no response of {name} for {call_id}")
    if not path.startswith("/"):
        raise MethodError("invalidResultReference", "the path does not start with a slash")
    tokens = [each.replace("~1", "/").replace("~0", "~") for each in path[1:].split("/")]
    return _walk(found[1], tokens)


def _walk(value: Any, tokens: Sequence[str]) -> Any:
    if not tokens:
        return value
    token, rest = tokens[0], tokens[1:]
    if isinstance(value, dict) and token in value:
        return _walk(value[token], rest)
    if isinstance(value, list) and token == "*":
        gathered: list[Any] = []
        for each in value:
            result = _walk(each, rest)
            # Arrays within the array are flattened, too.
            gathered.extend(result) if isinstance(result, list) else gathered.append(result)
        return gathered
    if isinstance(value, list) and token.isdecimal() and int(token) < len(value):
        return _walk(value[int(token)], rest)
    raise MethodError("invalidResultReference", f"nothing at {token!r}")
