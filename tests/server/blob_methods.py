"""Blob/get (RFC 9404 §4.2): many blobs in one response."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

from .call import Call
from .errors import MethodError

if TYPE_CHECKING:
    from .app import MailServer

_ALGORITHMS = {"sha": "sha1", "sha-256": "sha256"}
_PROPERTIES = ["id", "data", "data:asText", "data:asBase64", "size"]
_DEFAULT = ["id", "data", "size"]


def blob_get(server: MailServer, arguments: dict[str, Any]) -> dict[str, Any]:
    call = Call(server, arguments, "ids", "properties", "offset", "length")
    digests = [f"digest:{name}" for name in server.quirks.digests]
    properties = call.properties([*_PROPERTIES, *digests], _DEFAULT)
    with_data = any(name.startswith("data") for name in properties)
    offset, length = call.natural("offset") or 0, call.natural("length")
    ids = call.ids(None)
    end = None if length is None else offset + length
    sizes = (len((call.account.blobs.read(blob_id) or b"")[offset:end]) for blob_id in ids)
    most = server.quirks.max_blob_bytes
    if most is not None and with_data and sum(sizes) > most:
        raise MethodError("requestTooLarge", "the response would be too large")
    found, not_found = [], []
    for blob_id in ids:
        server.counts.blobs[blob_id] += with_data
        raw = call.account.blobs.read(blob_id)
        fault = server.quirks.blob_fault_for(blob_id)
        if raw is None or fault == "not-found":
            not_found.append(blob_id)
            continue
        if fault == "wrong-bytes":
            raw = corrupted(raw)
        elif fault == "wrong-length":
            raw = resized(raw, server.quirks.wrong_length_by)
        cut = len(raw) // 2 if fault == "truncated" else length
        blob = _blob(blob_id, raw, properties, offset, cut)
        lie = (
            server.liar.content(server.quirks, call.account, blob_id, "blob-get", offset=offset)
            if with_data
            else None
        )
        if lie is not None:
            honest = {name: value for name, value in blob.items() if name.startswith("digest:")}
            blob = {**_blob(blob_id, lie, properties, offset, cut), **honest}
        if fault == "truncated":
            blob["isTruncated"] = True
        if fault == "null":
            blob.update({name: None for name in properties if name.startswith("data")})
        if fault == "not-base64":
            blob["data:asBase64"] = "*" + blob["data:asBase64"][1:]
        if fault == "wrong-size":
            blob["size"] += server.quirks.wrong_length_by
        found.append(blob)
    return {"accountId": call.account.id, "list": found, "notFound": not_found}


def corrupted(raw: bytes) -> bytes:
    """Return different bytes of the same length."""
    return raw[:-1] + bytes([raw[-1] ^ 0x55]) if raw else raw


def resized(raw: bytes, by: int) -> bytes:
    """Return the bytes, extended by `by` bytes, or shortened if it is negative."""
    return raw + b"?" * by if by >= 0 else raw[:by]


def _blob(
    blob_id: str, raw: bytes, properties: list[str], offset: int, length: int | None
) -> dict[str, Any]:
    stop = len(raw) if length is None else offset + length
    part = raw[offset:stop]
    blob: dict[str, Any] = {"id": blob_id}
    if stop > len(raw) or offset > len(raw):
        blob["isTruncated"] = True
    try:
        text: str | None = part.decode()
    except UnicodeDecodeError:
        text = None
    for name in properties:
        match name:
            case "size":
                blob[name] = len(raw)
            case "data:asBase64":
                blob[name] = base64.b64encode(part).decode()
            case "data:asText":
                blob[name] = text
                if text is None:
                    blob["isEncodingProblem"] = True
            case "data" if text is not None:
                blob["data:asText"] = text
            case "data":
                blob["data:asBase64"] = base64.b64encode(part).decode()
                blob["isEncodingProblem"] = True
            case _ if name.startswith("digest:"):
                algorithm = _ALGORITHMS[name.removeprefix("digest:")]
                digest = hashlib.new(algorithm, part, usedforsecurity=False).digest()
                blob[name] = base64.b64encode(digest).decode()
    return blob
