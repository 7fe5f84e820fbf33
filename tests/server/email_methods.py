"""Email/get and Email/changes, Thread/get and Thread/changes (RFC 8621 §3, §4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .account import Account
from .call import Call
from .model import Email

if TYPE_CHECKING:
    from .app import MailServer

_HEADER = [
    *("subject", "from", "to", "cc", "bcc", "replyTo", "sender"),
    *("messageId", "inReplyTo", "references", "sentAt"),
]
_PROPERTIES = [
    *("id", "blobId", "threadId", "mailboxIds", "keywords", "size", "receivedAt"),
    *_HEADER,
    "hasAttachment",
]


def email_get(server: MailServer, arguments: dict[str, Any]) -> dict[str, Any]:
    call = Call(server, arguments, "ids", "properties")
    account, quirks = call.account, call.quirks
    properties = [p for p in call.properties(_PROPERTIES) if p not in quirks.missing_properties]
    ids = [i for i in call.ids(account.emails) if i not in quirks.omit_ids]
    missing = {i for i in ids if i not in account.emails or i in quirks.not_found_ids}
    return {
        "accountId": account.id,
        "state": account.logs["Email"].state,
        "list": [
            _email(server, account, account.emails[i], properties) for i in ids if i not in missing
        ],
        "notFound": [i for i in ids if i in missing],
    }


def email_changes(server: MailServer, arguments: dict[str, Any]) -> dict[str, Any]:
    call = Call(server, arguments, "sinceState", "maxChanges")
    return call.changes_response(call.changes(call.account.logs["Email"]))


def thread_get(server: MailServer, arguments: dict[str, Any]) -> dict[str, Any]:
    call = Call(server, arguments, "ids", "properties")
    account = call.account
    properties = call.properties(["id", "emailIds"])
    ids = call.ids(account.threads)
    found = []
    for thread_id in ids:
        if thread_id in account.threads:
            email_ids = sorted(
                account.threads[thread_id], key=lambda i: account.emails[i].received_at
            )
            thread = {"id": thread_id, "emailIds": email_ids}
            found.append({name: thread[name] for name in properties})
    return {
        "accountId": account.id,
        "state": account.logs["Thread"].state,
        "list": found,
        "notFound": [i for i in ids if i not in account.threads],
    }


def thread_changes(server: MailServer, arguments: dict[str, Any]) -> dict[str, Any]:
    call = Call(server, arguments, "sinceState", "maxChanges")
    return call.changes_response(call.changes(call.account.logs["Thread"]))


def _email(
    server: MailServer, account: Account, email: Email, properties: list[str]
) -> dict[str, Any]:
    quirks = server.quirks
    known: dict[str, Any] = {
        "id": email.id,
        "blobId": email.blob_id,
        "threadId": email.thread_id,
        "mailboxIds": dict.fromkeys(sorted(email.mailbox_ids), True),
        "keywords": dict.fromkeys(sorted(email.keywords), True),
        "size": email.size + quirks.size_offsets.get(email.id, quirks.size_offsets.get("*", 0)),
        "receivedAt": email.received_at,
    }
    if any(name in _HEADER for name in properties):
        known.update(account.header(email).properties())
        if quirks.null_from:
            known["from"] = None
        if quirks.null_subject:
            known["subject"] = None
    if "hasAttachment" in properties:
        raw = account.blobs.read(email.blob_id) or b""
        known["hasAttachment"] = b"content-disposition: attachment" in raw.lower()
    known.update(quirks.email_overrides.get(email.id, {}))
    return quirks.with_odd_values(email.id, {name: known[name] for name in properties})
