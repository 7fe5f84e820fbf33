"""The interface of the real servers, for tests that run against each of them."""

from __future__ import annotations

from typing import Protocol

from tests.mail_server.account import PASSWORD, MailAccount


class MailServer(Protocol):
    """A server in its own directory on loopback; its ports never change."""

    @property
    def groups(self) -> frozenset[int]:
        """The process groups of the server, none if it is stopped."""
        ...

    @property
    def url(self) -> str:
        """The URL for the discovery of the session."""
        ...

    def start(self) -> None:
        """Start the server, and wait until it responds."""
        ...

    def stop(self) -> None:
        """End all processes. Cyrus keeps its mail; James keeps it in memory and loses it."""
        ...

    def reset(self) -> None:
        """Start again with empty accounts of the same users: old ids and states mean nothing."""
        ...

    def disconnect(self) -> None:
        """Refuse JMAP connections and end those that are open; the mail stays.

        Whether IMAP still works depends on the server.
        """
        ...

    def reconnect(self) -> None:
        """Accept connections again after `disconnect`."""
        ...

    def pause(self) -> None:
        """Suspend the server: connections are accepted, but nothing responds."""
        ...

    def resume(self) -> None:
        """Continue after `pause`."""
        ...

    def add_user(self, name: str, password: str = PASSWORD) -> MailAccount:
        """Create a user with an empty account; `name` is without a domain."""
        ...

    def account(self, name: str, password: str = PASSWORD) -> MailAccount:
        """Return access to an account, which need not exist."""
        ...


running: set[MailServer] = set()
"""The running servers of this process."""
