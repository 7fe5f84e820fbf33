"""Mail on Cyrus to measure with: what was stored where, and whether a copy has all of it.

All peers take this mail. Of the corpus it leaves out the messages without an end of the header,
which mbsync skips with a warning.
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
class Stored:
    """An account, and the SHA-1s of the messages in it, as they are and without CRs."""

    account: Account
    digests: frozenset[bytes]
    digests_without_cr: frozenset[bytes]

    def __len__(self) -> int:
        return len(self.digests)

    @contextlib.contextmanager
    def from_afar(self, seconds: float) -> Iterator[Account]:
        """Give access to the account at this round-trip time; at 0 it is the direct one."""
        if not seconds:
            yield self.account
            return
        ports = (self.account.imap_port, self.account.http_port)
        with delayed(*ports, seconds=seconds) as (imap_port, http_port):
            yield dataclasses.replace(self.account, imap_port=imap_port, http_port=http_port)

    def check(self, copy: Iterable[bytes], whose: str, *, without_cr: bool = False) -> None:
        """Compare the contents of a copy with all that was stored.

        Raises:
            RuntimeError: something is missing, or is not what was stored.
        """
        stored = self.digests_without_cr if without_cr else self.digests
        found = list(map(_digest, copy))
        missing, wrong = stored.difference(found), set(found) - stored
        if missing or wrong or len(found) != len(self):
            raise RuntimeError(
                f"the copy of {whose} has {len(found)} mails of {len(self)}: "
                f"{len(missing)} are missing, {len(wrong)} are not what was stored"
            )


def store(cyrus: Cyrus, name: str, shares: Mapping[str, int]) -> Stored:
    """Make an account with so many different mails in each mailbox."""
    account = cyrus.add_user(name)
    mails = _mails(sum(shares.values()))
    digests, digests_without_cr = set(), set()
    for mailbox, count in shares.items():
        mine = [next(mails) for _ in range(count)]
        digests |= set(map(_digest, mine))
        digests_without_cr |= {_digest(mail.replace(b"\r", b"")) for mail in mine}
        if mailbox != "INBOX":
            account.create_mailbox(mailbox)
        account.fill(mailbox, mine)
    return Stored(account, frozenset(digests), frozenset(digests_without_cr))


def files(tree: Path) -> Iterator[bytes]:
    """Yield the content of each mail in a tree, or in a copy of one."""
    for path in tree.rglob("*.eml"):
        yield path.read_bytes()


def _mails(count: int) -> Iterator[bytes]:
    # Less than one in a hundred is left out.
    for mail in corpus.mails(count + count // 10 + 10):
        if _END_OF_HEADER in mail or mail.startswith(b"\r\n"):
            yield mail


def _digest(content: bytes) -> bytes:
    return hashlib.sha1(content, usedforsecurity=False).digest()
