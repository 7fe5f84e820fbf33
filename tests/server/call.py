"""One method call: its arguments, checked as strictly as RFC 8620 §3.6.2 demands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .account import Account
from .changes import ChangeLog, Delta, UnknownStateError
from .errors import MethodError

if TYPE_CHECKING:
    from .app import MailServer
    from .quirks import Quirks


class Call:
    """The arguments of a call, and the account that they name."""

    def __init__(self, server: MailServer, arguments: dict[str, Any], *allowed: str) -> None:
        self.server = server
        self.arguments = arguments
        if unknown := set(arguments) - {"accountId", *allowed}:
            raise MethodError("invalidArguments", f"unknown: {', '.join(sorted(unknown))}")
        account_id = arguments.get("accountId")
        if not isinstance(account_id, str):
            raise MethodError("invalidArguments", "accountId is missing")
        if account_id not in server.accounts:
            raise MethodError("accountNotFound")
        self.account: Account = server.accounts[account_id]

    @property
    def quirks(self) -> Quirks:
        return self.server.quirks

    def integer(self, name: str, default: int | None = None) -> int | None:
        value = self.arguments.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise MethodError("invalidArguments", f"{name} is not a number")
        return value

    def natural(self, name: str) -> int | None:
        value = self.integer(name)
        if value is not None and value < 0:
            raise MethodError("invalidArguments", f"{name} is negative")
        return value

    def flag(self, name: str) -> bool:
        value = self.arguments.get(name, False)
        if not isinstance(value, bool):
            raise MethodError("invalidArguments", f"{name} is not true or false")
        return value

    def strings(self, name: str) -> list[str] | None:
        value = self.arguments.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise MethodError("invalidArguments", f"{name} is not a list of strings")
        return list(value)

    def properties(self, known: Iterable[str], default: Iterable[str] | None = None) -> list[str]:
        """Return the requested properties; others than the `known` are an error."""
        wanted = self.strings("properties")
        if wanted is None:
            return list(known if default is None else default)
        if unknown := set(wanted) - set(known):
            raise MethodError("invalidArguments", f"unknown property: {', '.join(sorted(unknown))}")
        return list(dict.fromkeys(["id", *wanted]))

    def ids(self, everything: Iterable[str] | None) -> list[str]:
        """Return the ids to get; null means all, if `everything` is given."""
        ids = self.strings("ids")
        if ids is None:
            if everything is None:
                raise MethodError("invalidArguments", "ids is missing")
            ids = list(everything)
        if len(ids) > self.quirks.max_objects_in_get:
            raise MethodError("requestTooLarge", "more ids than maxObjectsInGet")
        return list(dict.fromkeys(ids))

    def changes(self, log: ChangeLog) -> Delta:
        """Return the result of /changes, subject to the quirks."""
        state = self.arguments.get("sinceState")
        if not isinstance(state, str):
            raise MethodError("invalidArguments", "sinceState is missing")
        limit = self.natural("maxChanges")
        if limit == 0:
            raise MethodError("invalidArguments", "maxChanges is 0")
        if self.quirks.has_more_lies:
            return Delta(state, state, has_more=True)
        if self.quirks.alternating_states:
            return Delta(state, log.state if state.endswith("'") else f"{state}'", has_more=True)
        if self.quirks.cannot_calculate:
            raise MethodError("cannotCalculateChanges")
        limits = [each for each in (limit, self.quirks.max_changes) if each is not None]
        try:
            return log.since(state, min(limits, default=None))
        except UnknownStateError:
            raise MethodError(self.quirks.unknown_state_error) from None

    def changes_response(self, delta: Delta) -> dict[str, Any]:
        return {
            "accountId": self.account.id,
            "oldState": delta.old_state,
            "newState": delta.new_state,
            "hasMoreChanges": delta.has_more,
            "created": delta.created,
            "updated": delta.updated,
            "destroyed": delta.destroyed,
        }
