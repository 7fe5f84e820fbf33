"""A source of snapshots in memory, for behaviour that no server shows on demand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jmapfs.errors import BlobNotFoundError, JmapfsError
from jmapfs.index.rows import EmailRow, EmailSlice
from jmapfs.snapshot.manifest import Origin
from jmapfs.snapshot.online import ContentCheck
from jmapfs.snapshot.source import BlobRequest, BlobTotals, EarlySink, Sink
from jmapfs.tree.export import ExportedMailbox
from jmapfs.tree.status_file import NOTHING, Lacking
from tests.snapshot.handmade import ORIGIN, Letter


@dataclass
class FakeAccount:
    """Letters, listed in parts of `part` mails; those with `unavailable` numbers fail to download.

    `opened` is called before a state is opened, with the number of the attempt. `sizes` are stated
    sizes that are wrong, by number. The content is then delivered as confirmed. `later` is added to
    the times of receipt. `lacking` and `compared_at` as in `Source`.
    """

    letters: list[Letter]
    unavailable: set[int] = field(default_factory=set)
    part: int = 7
    origin: Origin = ORIGIN
    stays_frozen: bool = True
    epoch: str = "e1"
    blob_ids_are_sha1: bool = False
    opened: Callable[[int], None] = lambda _: None
    downloaded: list[str] = field(default_factory=list)
    attempts: int = 0
    sizes: dict[int, int] = field(default_factory=dict)
    later: int = 0
    listed: int = 0
    lacking: Lacking = NOTHING
    compared_at: float = field(default_factory=time.time)

    @contextlib.asynccontextmanager
    async def open(self, early: EarlySink) -> AsyncIterator[_State]:
        del early
        self.attempts += 1
        self.opened(self.attempts)
        yield _State(self)


class _State:
    email_state = "s1"
    concurrency = 3
    cached = BlobTotals(0, 0)
    check: ContentCheck | None = None

    def __init__(self, account: FakeAccount) -> None:
        self._account = account
        self.origin = account.origin
        self.epoch = account.epoch
        self.lacking = account.lacking
        self.compared_at = account.compared_at
        self.blob_ids_are_sha1 = account.blob_ids_are_sha1
        self._letters = sorted(account.letters, key=lambda letter: letter.number)
        self._by_blob = {f"B{letter.number}": letter for letter in self._letters}
        self.mail_count = len(self._letters)
        names = sorted({name for letter in self._letters for name in letter.mailboxes})
        self.mailboxes = [
            ExportedMailbox(f"id-{name}", name, name, None, None, 0) for name in names
        ]

    async def emails_after(self, position: int) -> EmailSlice:
        end = position + self._account.part
        self._account.listed += 1
        mails = [self._mail(letter) for letter in self._letters[position:end]]
        return EmailSlice(mails, end if end < len(self._letters) else None)

    def batches(self, requests: Sequence[BlobRequest]) -> Iterator[Sequence[BlobRequest]]:
        for first in range(0, len(requests), 3):
            yield requests[first : first + 3]

    async def download(
        self,
        batch: Sequence[BlobRequest],
        sink: Sink,
        *,
        from_server: bool = False,  # noqa: ARG002 - there is no cache
    ) -> Mapping[str, JmapfsError]:
        lost = {one.blob_id for one in batch if int(one.blob_id[1:]) in self._account.unavailable}
        there = [one for one in batch if one.blob_id not in lost]
        await sink.write([(one, self._by_blob[one.blob_id].bytes) for one in there])
        self._account.downloaded += [one.blob_id for one in there]
        return {blob_id: BlobNotFoundError(f"no blob {blob_id}") for blob_id in lost}

    async def still_frozen(self) -> bool:
        return self._account.stays_frozen

    def _mail(self, letter: Letter) -> EmailRow:
        saved = letter.saved()
        files = tuple((place.id, place.file.removeprefix("mail/")) for place in saved.mailboxes)
        received_at = 1_700_000_000 + letter.number * 60 + self._account.later
        size = self._account.sizes.get(letter.number, saved.size)
        blob_id, thread = saved.blob_id, saved.thread_id
        return EmailRow(saved.id, blob_id, thread, received_at, size, saved.keywords, files)
