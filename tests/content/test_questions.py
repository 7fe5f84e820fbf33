"""What is asked after downloads: few requests for many mails, and no error of another mail."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
import trio
import trio.testing

from jmapfs.content.download import Downloader, join_chunks
from jmapfs.deadline import Deadline
from jmapfs.errors import (
    BlobMismatchError,
    DeadlineError,
    JmapfsError,
    ProtocolError,
    UnreachableError,
)
from jmapfs.jmap.emails import EmailValues
from tests.content.server import FakeSource, Limits, mail


class Blob:
    """A blob to be fetched."""

    def __init__(self, key: str, size: int = 300) -> None:
        self.content_key = key
        self.size = size


class SlowSource(FakeSource):
    """Answers a question after a second; `errors` are raised for questions about these keys."""

    def __init__(self, count: int) -> None:
        super().__init__({f"b{number}": mail(300) for number in range(count)})
        self.errors: dict[str, JmapfsError] = {}
        self.answered = 0

    async def stated(self, keys: Collection[str]) -> dict[str, EmailValues]:
        stated = await super().stated(keys)
        await trio.sleep(1)
        self.answered += 1
        for key in keys:
            if key in self.errors:
                raise self.errors[key]
        return stated


def downloader(source: FakeSource) -> Downloader:
    return Downloader(source, trio.CapacityLimiter(2))


async def fetch_all(
    source: SlowSource, keys: Sequence[str], *, seconds: float = 60.0
) -> dict[str, bytes | JmapfsError]:
    """Fetch blobs at the same time."""
    found: dict[str, bytes | JmapfsError] = {}
    shared = downloader(source)

    async def fetch(key: str) -> None:
        try:
            found[key] = await shared.fetch(Blob(key), join_chunks, deadline=Deadline(seconds))
        except JmapfsError as error:
            found[key] = error

    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(fetch, key)
    return found


async def test_many_downloads_share_few_questions(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    source = SlowSource(100)
    assert await fetch_all(source, list(source.blobs)) == source.blobs
    assert len(source.questions) <= 3


async def test_a_cancelled_asker_does_not_lose_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    source = SlowSource(4)
    shared = downloader(source)
    found: list[bytes] = []

    async def fetch(key: str, patience: float) -> None:
        with trio.move_on_after(patience):
            found.append(await shared.fetch(Blob(key), join_chunks, deadline=Deadline(60)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, "b0", 0.5)
        await trio.sleep(0.1)
        # These share a question. Either may be the one that sends it.
        for key, patience in (("b1", 1.0), ("b2", 9.0), ("b3", 9.0)):
            nursery.start_soon(fetch, key, patience)
    assert sorted(found) == sorted([source.blobs["b2"], source.blobs["b3"]])
    assert len(source.questions) <= 3


async def test_an_error_about_one_mail_is_not_that_of_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    source = SlowSource(8)
    source.errors["b5"] = ProtocolError("without 1 of 8 emails")
    found = await fetch_all(source, list(source.blobs))
    assert found.pop("b5") is source.errors["b5"]
    assert found == {key: data for key, data in source.blobs.items() if key != "b5"}


async def test_a_lost_connection_ends_all_at_once(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    source = SlowSource(50)
    source.errors = dict.fromkeys(source.blobs, UnreachableError("no network"))
    found = await fetch_all(source, list(source.blobs))
    assert all(isinstance(error, UnreachableError) for error in found.values())
    assert len(source.questions) <= 3


async def test_the_deadline_covers_the_question_and_the_second_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    source = SlowSource(1)
    found = await fetch_all(source, ["b0"], seconds=0.5)
    assert isinstance(found["b0"], DeadlineError)
    # A doubt, then a question before and after the second attempt.
    source.lie, source.lies = lambda data: data[:-40], 1
    began = trio.current_time()
    found = await fetch_all(source, ["b0"], seconds=1.5)
    assert isinstance(found["b0"], DeadlineError)
    # The bytes that arrived have given a little time.
    assert trio.current_time() - began == pytest.approx(1.5, abs=0.05)
    assert source.deadlines[-1] <= 0.55


async def test_a_new_connection_is_used_if_there_is_no_other_route() -> None:
    source = FakeSource({"b": mail(300)})
    source.lie, source.lies = lambda data: data[:-40], 1
    data = await downloader(source).fetch(Blob("b"), join_chunks, deadline=Deadline(60))
    assert data == source.blobs["b"]
    assert [fresh for _, fresh in source.attempts] == [False, True]


async def test_equal_bytes_of_one_route_do_not_confirm_another_size() -> None:
    source = FakeSource({"b": mail(300)})
    source.lie = lambda data: data[:-40]
    with pytest.raises(BlobMismatchError, match="260 bytes for a mail of 300"):
        await downloader(source).fetch(Blob("b"), join_chunks, deadline=Deadline(60))
    assert [fresh for _, fresh in source.attempts] == [False, True]


async def test_a_batch_accepts_only_what_the_server_states_afterwards() -> None:
    source = FakeSource({f"b{number}": mail(300) for number in range(5)})
    source.batch_limits = Limits(10)
    source.message_ids["b1"] = ("another@example.org",)
    source.wrong_sizes["b2"] = 301
    batch = [Blob(key) for key in source.blobs]
    written: list[str] = []

    async def write(accepted: list[tuple[Blob, bytes]]) -> None:
        for blob, data in accepted:
            assert data == source.blobs[blob.content_key]
            written.append(blob.content_key)

    del source.blobs["b3"]
    source.blobs["b4"] = b"\0" * 300
    rest = await downloader(source).fetch_batch(batch, write, deadline=Deadline(60))
    assert written == ["b0"]
    assert [blob.content_key for blob in rest] == ["b1", "b2", "b3", "b4"]
    assert source.questions == [["b0", "b1", "b2"]]
