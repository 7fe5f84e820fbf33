"""Executes an operation of an account by name, with arguments from JSON."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from .account import Account, NewEmail

OPERATIONS = frozenset(
    {
        *("create_mailbox", "rename_mailbox", "move_mailbox", "destroy_mailbox"),
        *("change_mailbox_ids", "add_email", "add_emails", "copy_email", "remove_email"),
        *("move_email", "set_mailboxes", "set_keywords", "destroy_email", "destroy_emails"),
        *("change_email_ids", "forget_changes"),
    }
)


class OperationError(Exception):
    """The operation is unknown, or its arguments are invalid."""


def operate(account: Account, method: str, arguments: dict[str, Any]) -> Any:
    """Execute an operation; its bytes arguments are in base64."""
    if method not in OPERATIONS:
        raise OperationError(f"unknown operation: {method}")
    arguments = dict(arguments)
    try:
        if method == "add_email":
            arguments["raw"] = base64.b64decode(arguments["raw"])
        elif method == "add_emails":
            arguments["emails"] = msgspec.convert(arguments["emails"], list[NewEmail])
        return getattr(account, method)(**arguments)
    except (LookupError, TypeError, ValueError) as error:
        raise OperationError(f"{method}: {type(error).__name__}: {error}") from error
