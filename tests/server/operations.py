"""The operations of an account by name, with their arguments as JSON has them."""

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
    """The operation is not known, or its arguments do not fit."""


def operate(account: Account, method: str, arguments: dict[str, Any]) -> Any:
    """Do it; bytes are given in base64."""
    if method not in OPERATIONS:
        raise OperationError(f"no such operation: {method}")
    arguments = dict(arguments)
    try:
        if method == "add_email":
            arguments["raw"] = base64.b64decode(arguments["raw"])
        elif method == "add_emails":
            arguments["emails"] = msgspec.convert(arguments["emails"], list[NewEmail])
        return getattr(account, method)(**arguments)
    except (LookupError, TypeError, ValueError) as error:
        raise OperationError(f"{method}: {type(error).__name__}: {error}") from error
