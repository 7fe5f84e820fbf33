"""The account of the matrix: a mailbox for each operation, with known content."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.mails import identified_mail, new_emails
from tests.server import ServerProcess

SMALL, LARGE = 3000, 1_300_000


@dataclass
class FaultyAccount:
    """An account on a server of its own.

    `contents` has the messages of each mailbox in the order of their files.
    """

    server: ServerProcess
    contents: dict[str, list[bytes]] = field(default_factory=dict)
    _ids: dict[str, str] = field(default_factory=dict)
    _count: int = 0

    def fill(self, name: str, small: int, large: int = 0) -> None:
        """Create a mailbox with messages; the large ones, over 1 MiB, are the last."""
        self._ids[name] = self.server.control.create_mailbox(name)
        self.contents[name] = []
        sizes = [SMALL] * small + [LARGE] * large
        mails = [self._next(size) for size in sizes]
        self._add(name, mails)

    def deliver(self) -> bytes:
        """Add a small message to the Inbox; return it."""
        mail = self._next(SMALL)
        self._add("Inbox", [mail])
        return mail

    def check(self, directory: Path, name: str) -> list[str]:
        """Return what is wrong with the listing of a mailbox."""
        expected = self.contents[name]
        sizes = [path.stat().st_size for path in sorted(directory.glob("*.eml"))]
        if sizes == [len(mail) for mail in expected]:
            return []
        return [f"{name} shows {len(sizes)} of {len(expected)} files, or wrong sizes"]

    def is_listed(self, mountpoint: Path, name: str) -> bool:
        """Return whether the tree has all mails of a mailbox, in whatever directories."""
        sizes = sorted(path.stat().st_size for path in mountpoint.rglob("*.eml"))
        return sizes == sorted(len(mail) for mail in self.contents[name])

    def _next(self, size: int) -> bytes:
        self._count += 1
        # All sizes differ: then another mail has another length.
        return identified_mail(self._count, size + 7 * self._count)

    def _add(self, name: str, mails: list[bytes]) -> None:
        first = self._count - len(mails)
        self.server.control.add_emails(new_emails(mails, self._ids[name], first=first))
        self.contents[name] += mails
