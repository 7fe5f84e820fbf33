"""Result references: arguments from the result of an earlier call (RFC 8620 §3.7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import MethodError

Invocation = tuple[str, dict[str, Any], str]


def resolve(arguments: dict[str, Any], responses: Sequence[Invocation]) -> dict[str, Any]:
    """Return the arguments with each `#name` replaced by its value."""
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
            # Arrays within the array are flattened (§3.7).
            gathered.extend(result) if isinstance(result, list) else gathered.append(result)
        return gathered
    if isinstance(value, list) and token.isdecimal() and int(token) < len(value):
        return _walk(value[int(token)], rest)
    raise MethodError("invalidResultReference", f"nothing at {token!r}")
