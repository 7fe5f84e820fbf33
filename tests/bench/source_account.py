"""An account on Cyrus that jmapfs and its peers copy, and the check of the copies.

Its mail is the corpus without the messages whose header has no end: mbsync skips them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import corpus
from tests.bench.proxy import delayed
from tests.cyrus import Account, Cyrus

_END_OF_HEADER = b"\r\n\r\n"


@dataclass(frozen=True)
class SourceAccount:
    """An account, and the SHA-1s of its messages, unchanged and without CRs."""

    account: Account
    digests: frozenset[bytes]
    digests_without_cr: frozenset[bytes]

    def __len__(self) -> int:
        return len(self.digests)

    @contextlib.contextmanager
    def with_latency(self, seconds: float) -> Iterator[Account]:
        """Provide access to the account with this round-trip time; 0 is the direct access."""
        if not seconds:
            yield self.account
            return
        ports = (self.account.imap_port, self.account.http_port)
        with delayed(*ports, seconds=seconds) as (imap_port, http_port):
            yield dataclasses.replace(self.account, imap_port=imap_port, http_port=http_port)

    def check(self, copy: Iterable[bytes], program: str, *, without_cr: bool = False) -> None:
        """Compare the mails of a copy with those of the account.

        Raises:
            RuntimeError: mails are missing, added or different.
        """
        expected = self.digests_without_cr if without_cr else self.digests
        found = list(map(_digest, copy))
        missing, wrong = expected.difference(found), set(found) - expected
        if missing or wrong or len(found) != len(self):
            raise RuntimeError(
                f"the copy by {program} has {len(found)} mails of {len(self)}: "
                f"{len(missing)} are missing, {len(wrong)} are different"
            )


def create_source_account(cyrus: Cyrus, name: str, shares: Mapping[str, int]) -> SourceAccount:
    """Create an account with these numbers of different mails by mailbox."""
    account = cyrus.add_user(name)
    mails = _mails(sum(shares.values()))
    digests, digests_without_cr = set(), set()
    for mailbox, count in shares.items():
        share = [next(mails) for _ in range(count)]
        digests |= set(map(_digest, share))
        digests_without_cr |= {_digest(mail.replace(b"\r", b"")) for mail in share}
        if mailbox != "INBOX":
            account.create_mailbox(mailbox)
        account.fill(mailbox, share)
    return SourceAccount(account, frozenset(digests), frozenset(digests_without_cr))


def mail_files(tree: Path) -> Iterator[bytes]:
    """Yield the content of each mail in a tree or a copy of it."""
    for path in tree.rglob("*.eml"):
        yield path.read_bytes()


def _mails(count: int) -> Iterator[bytes]:
    # Fewer than one in a hundred has no end of the header.
    for mail in corpus.mails(count + count // 10 + 10):
        if _END_OF_HEADER in mail or mail.startswith(b"\r\n"):
            yield mail


def _digest(content: bytes) -> bytes:
    return hashlib.sha1(content, usedforsecurity=False).digest()
