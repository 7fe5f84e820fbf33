"""One account on a real server, and the operations of another mail client.

Most operations use IMAP. JMAP is for those that IMAP does not have, such as adding an email to
another mailbox.

Every operation opens its own connection (a few milliseconds on loopback). None stays open, so the
server can be stopped at any time.
"""

from __future__ import annotations

import hashlib
import imaplib
import socket
import ssl
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

import httpx

from tests.mail_server import utf7
from tests.mail_server.append import MULTIAPPEND_BATCH, Message, append_all

PASSWORD = "correct horse"
TIMEOUT = 30.0

Call = tuple[str, dict[str, Any]]


class RefusedError(Exception):
    """The server refused an operation; the text is its response."""


@dataclass(frozen=True)
class MailAccount:
    """The account of a user. IMAP operations identify a message by mailbox and UID.

    Names of mailboxes are paths with `/` between the names. The class attributes and the methods
    `account_id` and `download_path` are what differs between servers.
    """

    inbox: ClassVar[str] = "INBOX"
    """The name of the inbox in JMAP, and of its directory."""
    has_push: ClassVar[bool]
    has_sha1_ids: ClassVar[bool]
    """Whether blob ids contain the SHA-1 of the content."""
    most_mails: ClassVar[int] = sys.maxsize
    """Tests should not store more real mail: the server is slow then."""
    separator: ClassVar[str] = "/"
    append_batch: ClassVar[int] = MULTIAPPEND_BATCH
    api_path: ClassVar[str]
    using: ClassVar[tuple[str, ...]] = ("urn:ietf:params:jmap:core", "urn:ietf:params:jmap:mail")
    headers: ClassVar[Mapping[str, str]] = {}

    imap_port: int
    http_port: int
    name: str
    password: str

    @property
    def url(self) -> str:
        """The URL for the discovery of the session."""
        return f"http://127.0.0.1:{self.http_port}/.well-known/jmap"

    @property
    def account_id(self) -> str:
        """The id of the account in JMAP."""
        raise NotImplementedError

    def download_path(self, blob_id: str) -> str:
        """Return the path and the query of a blob's URL."""
        raise NotImplementedError

    # --- IMAP

    @contextmanager
    def imap(self) -> Iterator[imaplib.IMAP4]:
        """Log in; the end of the block closes the connection."""
        connection = imaplib.IMAP4("127.0.0.1", self.imap_port, TIMEOUT)
        try:
            # Without this, Nagle's algorithm waits for a delayed ACK: 40 ms for each command.
            connection.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _ok(connection.login(self.name, self.password))
            yield connection
            # The caller may have stopped the server meanwhile.
            with suppress(imaplib.IMAP4.abort, OSError):
                connection.logout()
        finally:
            # Raises an error if the logout has closed the connection.
            with suppress(OSError):
                connection.shutdown()

    def append(
        self,
        mailbox: str,
        message: bytes,
        flags: Sequence[str] = (),
        received: datetime | None = None,
    ) -> int:
        """Append a message with CRLF line ends to `mailbox`; return its UID."""
        return self.fill(mailbox, [Message(message, tuple(flags), received)])[0]

    def fill(self, mailbox: str, messages: Iterable[Message | bytes]) -> list[int]:
        """Append many messages to `mailbox` efficiently; return their UIDs."""
        with self.imap() as connection:
            return append_all(connection, self._path(mailbox), messages, self.append_batch)

    def create_mailbox(self, name: str) -> None:
        """Create a mailbox and its parents; `/` separates the names."""
        self._command("create", self._quoted(name))

    def rename_mailbox(self, old: str, new: str) -> None:
        """Rename or move a mailbox with all its children."""
        self._command("rename", self._quoted(old), self._quoted(new))

    def delete_mailbox(self, name: str) -> None:
        """Delete a mailbox and its mail; its children stay."""
        self._command("delete", self._quoted(name))

    def expunge(self, mailbox: str, uids: Sequence[int]) -> None:
        """Remove messages from `mailbox`."""
        with self._selected(mailbox) as connection:
            _ok(connection.uid("STORE", _uid_set(uids), "+FLAGS.SILENT", r"(\Deleted)"))
            _ok(connection.uid("EXPUNGE", _uid_set(uids)))

    def copy(self, mailbox: str, uids: Sequence[int], target: str) -> None:
        """Copy messages; the email then has its id in both mailboxes."""
        with self._selected(mailbox) as connection:
            _ok(connection.uid("COPY", _uid_set(uids), self._quoted(target)))

    def move(self, mailbox: str, uids: Sequence[int], target: str) -> None:
        """Move messages (RFC 6851)."""
        with self._selected(mailbox) as connection:
            _ok(connection.uid("MOVE", _uid_set(uids), self._quoted(target)))

    def store_flags(
        self, mailbox: str, uids: Sequence[int], flags: Sequence[str], *, how: str = "+FLAGS"
    ) -> None:
        """Add flags; `how="-FLAGS"` removes and `how="FLAGS"` replaces them."""
        with self._selected(mailbox) as connection:
            _ok(connection.uid("STORE", _uid_set(uids), how, f"({' '.join(flags)})"))

    def share(self, mailbox: str, reader: str) -> None:
        """Allow another user to find a mailbox and to read its mail (RFC 4314)."""
        self._command("setacl", self._quoted(mailbox), reader, "lr")

    def _path(self, mailbox: str) -> str:
        return mailbox.replace("/", self.separator)

    def _quoted(self, mailbox: str) -> str:
        return utf7.quote(self._path(mailbox))

    def _command(self, command: str, *arguments: str) -> None:
        with self.imap() as connection:
            _ok(getattr(connection, command)(*arguments))

    @contextmanager
    def _selected(self, mailbox: str) -> Iterator[imaplib.IMAP4]:
        with self.imap() as connection:
            _ok(connection.select(self._quoted(mailbox)))
            yield connection

    # --- JMAP

    def http(self) -> httpx.Client:
        """Return a client with the credentials; the caller closes it."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.http_port}",
            auth=(self.name, self.password),
            headers=dict(self.headers),
            timeout=TIMEOUT,
            # There is no TLS, and loading the certificates takes longer than a call.
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=False,
        )

    def jmap(self, *calls: Call) -> list[dict[str, Any]]:
        """Make calls such as `("Mailbox/get", {"ids": None})`; `accountId` is added.

        Returns the arguments of the responses, in order.

        Raises:
            RefusedError: a response is an `error`.
        """
        body = {
            "using": self.using,
            "methodCalls": [
                [method, {"accountId": self.account_id, **arguments}, str(number)]
                for number, (method, arguments) in enumerate(calls)
            ],
        }
        with self.http() as client:
            response = client.post(self.api_path, json=body).raise_for_status()
        answers: list[dict[str, Any]] = []
        for method, arguments, _ in response.json()["methodResponses"]:
            if method == "error":
                raise RefusedError(str(arguments))
            answers.append(arguments)
        return answers

    def set_mailboxes(self, **arguments: Any) -> dict[str, Any]:
        """Call Mailbox/set; raise RefusedError if the server refuses a part of it."""
        return self._set("Mailbox/set", arguments)

    def set_emails(self, **arguments: Any) -> dict[str, Any]:
        """Call Email/set; raise RefusedError if the server refuses a part of it."""
        return self._set("Email/set", arguments)

    def create_mailbox_by_jmap(self, name: str, parent_id: str | None = None) -> str:
        """Create a mailbox over JMAP, which allows other names than IMAP; return its id."""
        created = self.set_mailboxes(create={"new": {"name": name, "parentId": parent_id}})
        mailbox_id: str = created["created"]["new"]["id"]
        return mailbox_id

    def mailbox_ids(self) -> dict[str, str]:
        """Return the id of each mailbox by its path, with `/` between the names."""
        mailboxes = {one["id"]: one for one in self.jmap(("Mailbox/get", {"ids": None}))[0]["list"]}

        def path(one: Mapping[str, Any]) -> str:
            name: str = one["name"]
            parent = mailboxes.get(one.get("parentId"))
            return f"{path(parent)}/{name}" if parent else name

        return {path(one): mailbox_id for mailbox_id, one in mailboxes.items()}

    def email_ids(self, mailbox_id: str | None = None) -> list[str]:
        """Return the ids of all emails or of one mailbox, in the order of receipt."""
        condition = {"filter": {"inMailbox": mailbox_id}} if mailbox_id else {}
        order = [{"property": "receivedAt"}]
        ids: list[str] = []
        while True:
            page = {**condition, "sort": order, "position": len(ids)}
            (answer,) = self.jmap(("Email/query", page))
            ids += answer["ids"]
            # A server that limits the number of ids names its limit.
            if not answer["ids"] or len(answer["ids"]) < answer.get("limit", sys.maxsize):
                return ids

    def destroy(self, email_ids: Sequence[str]) -> None:
        """Destroy emails, in all their mailboxes."""
        self.set_emails(destroy=list(email_ids))

    def download(self, blob_id: str) -> bytes:
        """Return the bytes of a blob."""
        with self.http() as client:
            return client.get(self.download_path(blob_id)).raise_for_status().content

    def sha1s(self, blob_ids: Iterable[str]) -> dict[str, str]:
        """Return the SHA-1 of each blob in hexadecimal, by its id."""
        with self.http() as client:
            return {
                blob_id: hashlib.sha1(
                    client.get(self.download_path(blob_id)).raise_for_status().content,
                    usedforsecurity=False,
                ).hexdigest()
                for blob_id in blob_ids
            }

    def downloads(self, mails: Iterable[bytes]) -> int:
        """Return how many downloads different messages need; one without a header needs two."""
        return sum(
            2 if mail.startswith(b"\r\n") and not self.has_sha1_ids else 1 for mail in set(mails)
        )

    def _set(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        answer = self.jmap((method, arguments))[0]
        for refusals in ("notCreated", "notUpdated", "notDestroyed"):
            if answer.get(refusals):
                raise RefusedError(str(answer[refusals]))
        return answer


def _ok(answer: tuple[str, Any]) -> None:
    status, data = answer
    if status != "OK":
        raise RefusedError(str(data))


def _uid_set(uids: Sequence[int]) -> str:
    return ",".join(map(str, uids))
