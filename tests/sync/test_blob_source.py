"""What a blob source states and downloads, against a server that changes or was reset."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from jmapfs.blob_keys import content_key
from jmapfs.content.download import Downloader, join_chunks
from jmapfs.deadline import Deadline
from jmapfs.errors import ServerError, StorageError, TooMuchGoneError, UnreachableError
from jmapfs.jmap.client import Client, connect
from jmapfs.snapshot.source import BlobRequest
from jmapfs.sync.blob_source import AccountBlobSource, open_blob_source
from jmapfs.tree.export import BlobNames
from tests.server import MethodFault
from tests.sync.followed_account import CREDENTIALS, Follower, followed, message, small_account


@dataclass
class Opened:
    """A blob source of an index that is up to date, and how often it has reported something."""

    follower: Follower
    source: AccountBlobSource
    wakes: int = 0
    resets: int = 0
    offline: bool = False

    def key(self, email_id: str) -> str:
        blob_id = self.follower.account.emails[email_id].blob_id
        return content_key(self.follower.writer.epoch(), blob_id)

    async def refuses(self, key: str, match: str) -> None:
        """Check that no method gives anything for a key."""
        assert await self.source.stated([key]) == {}
        with pytest.raises(ServerError, match=match):
            await self.source.download_batch([(key, 5)], deadline=Deadline(10))
        with pytest.raises(ServerError, match=match):
            await self.source.digests([key])
        for stream in (
            self.source.stream_blob(key, deadline=Deadline(10)),
            self.source.stream_ranges(key, 5, deadline=Deadline(10)),
        ):
            with pytest.raises(ServerError, match=match):
                async with stream:
                    pass


@asynccontextmanager
async def opened(directory: Path, **quirks: Any) -> AsyncIterator[Opened]:
    async with followed(small_account(), directory, **quirks) as follower:
        await follower.update()

        def client() -> Client:
            if found.offline:
                raise UnreachableError("no network")
            return follower.client

        def wake() -> None:
            found.wakes += 1

        def report_reset() -> None:
            found.resets += 1

        with open_blob_source(
            follower.database,
            client,
            describe=BlobNames().describe,
            wake=wake,
            report_reset=report_reset,
        ) as source:
            found = Opened(follower, source)
            yield found


async def test_many_blobs_are_one_question(tmp_path: Path) -> None:
    async with opened(tmp_path) as found:
        emails = found.follower.account.emails
        before = found.follower.counts.methods["Email/get"]
        stated = await found.source.stated([found.key(one) for one in emails])
        assert found.follower.counts.methods["Email/get"] == before + 1
        for email_id, email in emails.items():
            value = stated[found.key(email_id)]
            assert (value.blob_id, value.size) == (email.blob_id, email.size)
            [message_id] = value.message_ids
            raw = found.follower.account.blobs.read(email.blob_id)
            assert raw is not None
            assert f"<{message_id}>".encode() in raw
        assert found.resets == 0


async def test_a_deleted_email_states_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as found:
        # M3 and M4 have the same blob.
        keys = [found.key("M3"), found.key("M5")]
        found.follower.account.destroy_emails(["M3", "M5"])
        assert set(await found.source.stated(keys)) == {keys[0]}
        found.follower.account.destroy_email("M4")
        assert await found.source.stated(keys) == {}
        assert await found.source.stated([]) == {}
        assert found.resets == 0


@pytest.mark.parametrize("other", [{"blobId": "Bother"}, {"receivedAt": "2020-01-01T00:00:00Z"}])
async def test_other_values_of_an_email_are_reported(tmp_path: Path, other: dict[str, str]) -> None:
    async with opened(tmp_path) as found:
        keys = [found.key("M5"), found.key("M6")]
        found.follower.quirks.email_overrides = {"M5": other}
        assert set(await found.source.stated(keys)) == {keys[1]}
        assert found.resets == 1
        assert await found.source.take_suspects() == ["M5"]
        # The account is listed again after a report. So there is none for each read.
        assert set(await found.source.stated(keys)) == {keys[1]}
        assert found.resets == 1


@pytest.mark.parametrize("repaired", [True, False])
async def test_a_strange_date_is_no_other_value(tmp_path: Path, *, repaired: bool) -> None:
    strange = {"M5": {"receivedAt": "32547-12-05T15:30:08Z"}}
    async with opened(tmp_path, email_overrides=strange if repaired else {}) as found:
        key = found.key("M5")
        found.follower.quirks.email_overrides = {} if repaired else strange
        assert set(await found.source.stated([key])) == {key}
        assert found.resets == 0
        assert await found.source.take_suspects() == []


async def test_a_key_of_an_earlier_epoch_gives_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as found:
        blob_id = found.follower.account.emails["M5"].blob_id
        for epoch in ("", "0" * 8):
            await found.refuses(content_key(epoch, blob_id), "reset after this mail was listed")


async def test_nothing_is_downloaded_by_id_while_a_reset_is_unapplied(tmp_path: Path) -> None:
    async with opened(tmp_path) as found:
        key = found.key("M1")
        found.follower.account.reset([message(number) for number in range(100, 103)])
        with pytest.raises(TooMuchGoneError):
            await found.follower.update()
        await found.refuses(key, "--accept-deletions")


async def test_a_server_that_states_no_message_id(tmp_path: Path) -> None:
    async with opened(tmp_path) as found:
        key = found.key("M5")
        found.follower.quirks.missing_properties = ["messageId"]
        assert (await found.source.stated([key]))[key].message_ids == ()
        found.follower.quirks.missing_properties = []
        found.follower.quirks.method_faults = [MethodFault("Email/get", "invalidArguments")]
        assert (await found.source.stated([key]))[key].message_ids == ()


@pytest.mark.parametrize("algorithms", [["sha"], ["sha-256"], []])
async def test_digests(tmp_path: Path, algorithms: list[str]) -> None:
    async with opened(tmp_path, digests=algorithms) as found:
        key = found.key("M5")
        digests = await found.source.digests([key])
        assert [one.algorithm for one in digests.values()] == algorithms


async def test_a_lost_connection_is_reported(tmp_path: Path) -> None:
    async with opened(tmp_path) as found:
        key = found.key("M5")
        found.offline = True
        with pytest.raises(UnreachableError):
            await found.source.stated([key])
        with pytest.raises(UnreachableError):
            await found.source.download_batch([(key, 5)], deadline=Deadline(10))
        # A round for each read would not help.
        assert found.wakes == 1
        assert found.source.batch_limits is None
        assert found.source.concurrency == 1


async def test_a_name_for_messages(tmp_path: Path) -> None:
    async with opened(tmp_path) as found:
        name = found.source.describe(found.key("M5"))
        assert name.startswith("Work/Clients/")
        assert "M5" in name
        assert found.source.describe("unknown") == "a mail"


def test_a_name_without_an_index() -> None:
    def fail() -> Any:
        raise StorageError("the index is gone")

    source = AccountBlobSource(fail, fail, BlobNames().describe, fail, fail)
    assert source.describe("b") == "a mail"


@pytest.mark.parametrize("blob_get", [False, True])
@pytest.mark.parametrize("lie", ["html", "empty", "short", "long", "other-mail"])
async def test_one_connection_is_enough_for_all_attempts_and_questions(
    tmp_path: Path, lie: Any, *, blob_get: bool
) -> None:
    # A question must not wait for a download that waits for the question.
    async with opened(tmp_path, blob_get=blob_get, digests=[]) as found:
        account, quirks = found.follower.account, found.follower.quirks
        account.add_email(message(99, body="x" * 3_000_000), ["P0"], email_id="Mlarge")
        await found.follower.update()
        blobs = {found.key(one.id): one for one in account.emails.values()}
        fetched: dict[str, bytes] = {}

        async def fetch(key: str) -> None:
            request = BlobRequest(blobs[key].blob_id, blobs[key].size, 0, "", epoch=key[:8])
            assert request.content_key == key
            fetched[key] = await downloader.fetch(request, join_chunks, deadline=Deadline(20))

        async with connect(
            f"{found.follower.url}/session", CREDENTIALS, account=account.id, concurrency=1
        ) as client:
            with open_blob_source(
                found.follower.database, lambda: client, describe=BlobNames().describe
            ) as source:
                downloader = Downloader(source, trio.CapacityLimiter(1))
                quirks.lie, quirks.lie_routes, quirks.lie_count = lie, ["download"], 8
                quirks.lie_equal_size = lie == "other-mail"
                if not blob_get:
                    # Both attempts must not meet a lie.
                    quirks.lie_count = 1
                async with trio.open_nursery() as nursery:
                    for key in blobs:
                        nursery.start_soon(fetch, key)
        assert fetched == {key: account.blobs.read(one.blob_id) for key, one in blobs.items()}
