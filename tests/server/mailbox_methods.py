"""Mailbox/get, Mailbox/changes and Mailbox/query (RFC 8621 §2)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from .account import Account
from .call import Call
from .errors import MethodError
from .model import Mailbox

if TYPE_CHECKING:
    from .app import MailServer

_COUNTS = ["totalEmails", "unreadEmails", "totalThreads", "unreadThreads"]
_PROPERTIES = [
    "id",
    "name",
    "parentId",
    "role",
    "sortOrder",
    "isSubscribed",
    "myRights",
    *_COUNTS,
]


def mailbox_get(server: MailServer, arguments: dict[str, Any]) -> dict[str, Any]:
    call = Call(server, arguments, "ids", "properties")
    account = call.account
    properties = call.properties(_PROPERTIES)
    ids = call.ids(account.mailboxes)
    return {
        "accountId": account.id,
        "state": account.logs["Mailbox"].state,
        "list": [
            call.quirks.with_odd_values(
                i,
                {
                    name: _property(account, account.mailboxes[i], name, call.quirks.ghost_ids)
                    for name in properties
                },
            )
            for i in ids
            if i in account.mailboxes
        ],
        "notFound": [i for i in ids if i not in account.mailboxes],
    }


def mailbox_changes(server: MailServer, arguments: dict[str, Any]) -> dict[str, Any]:
    call = Call(server, arguments, "sinceState", "maxChanges")
    delta = call.changes(call.account.logs["Mailbox"])
    return {
        **call.changes_response(delta),
        "updatedProperties": _COUNTS if delta.counts_only else None,
    }


def mailbox_query(server: MailServer, arguments: dict[str, Any]) -> dict[str, Any]:
    call = Call(
        server,
        arguments,
        *("filter", "sort", "position", "anchor", "anchorOffset", "limit", "calculateTotal"),
        *("sortAsTree", "filterAsTree"),
    )
    account = call.account
    condition = arguments.get("filter") or {}
    if not isinstance(condition, dict) or set(condition) - {"parentId", "name", "role"}:
        raise MethodError("unsupportedFilter")
    if any(
        each.get("property") not in {"sortOrder", "name"} for each in arguments.get("sort") or []
    ):
        raise MethodError("unsupportedSort")
    boxes = [
        box
        for box in account.mailboxes.values()
        if condition.get("parentId", box.parent_id) == box.parent_id
        and condition.get("role", box.role) == box.role
        and condition.get("name", "") in box.name
    ]
    boxes.sort(key=lambda box: (box.sort_order, box.name))
    position = call.integer("position") or 0
    limit = call.natural("limit")
    response: dict[str, Any] = {
        "accountId": account.id,
        "queryState": account.logs["Mailbox"].state,
        "canCalculateChanges": False,
        "position": position,
        "ids": [box.id for box in boxes][position : None if limit is None else position + limit],
    }
    if call.flag("calculateTotal"):
        response["total"] = len(boxes)
    return response


def _property(account: Account, box: Mailbox, name: str, ghosts: Collection[str]) -> Any:
    match name:
        case "id":
            return box.id
        case "name":
            return box.name
        case "parentId":
            return box.parent_id
        case "role":
            return box.role
        case "sortOrder":
            return box.sort_order
        case "isSubscribed":
            return box.is_subscribed
        case "myRights":
            rights = ("AddItems", "RemoveItems", "SetSeen", "SetKeywords", "CreateChild", "Rename")
            return {
                "mayReadItems": box.may_read_items,
                **{f"may{right}": False for right in (*rights, "Delete", "Submit")},
            }
        case "totalEmails":
            return len(account.members[box.id].keys() - ghosts)
    members = [account.emails[i] for i in account.members[box.id]]
    if name.startswith("unread"):
        members = [email for email in members if "$seen" not in email.keywords]
    return len(members) if name == "unreadEmails" else len({email.thread_id for email in members})
