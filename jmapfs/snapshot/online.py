"""Compares the mail of snapshots with the server by digests. No mail is downloaded for that.

    manifest ── batches of mails ──> Blob/get for their digests ──> compare ──> findings

`OnlineComparison` compares a finished snapshot, `ContentCheck` the contents of a new one.

A SHA-256 of the server is compared with the manifest. A SHA-1 (the server has nothing better, or it
is a part of the blob id) is compared with the files, which are read for that.

A digest that differs proves nothing if the server has given the blob id to another mail. So at the
end the server is asked what it has under the ids of the emails that differ.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import trio

from jmapfs.deadline import Deadline
from jmapfs.errors import (
    BlobMismatchError,
    BlobNotFoundError,
    ConfigError,
    ServerError,
    UsageError,
    lone_errors,
)
from jmapfs.jmap.blob_get import BlobDigest
from jmapfs.jmap.client import Client
from jmapfs.jmap.emails import EmailValues
from jmapfs.jmap.origins import host_of
from jmapfs.snapshot.base import SharedFile
from jmapfs.snapshot.manifest import Origin, SavedMail, is_mail_file, read_manifest, utc_date
from jmapfs.snapshot.repository import origin_text
from jmapfs.snapshot.verify_read import Comparison, Finding, InodeCache, read_digest

_DIFFERENT: Final = "is not what the server has"
_GONE: Final = "the server does not have it any more"
_UNDIGESTED: Final = "the server gives no digest of it"
_BUFFER_BYTES: Final = 1 << 20
# The server reads and hashes all mail of a request.
_BATCH_MAILS: Final = 200
_BATCH_BYTES: Final = 64 << 20
# Seconds for a request: a part that does not depend on its mail, and a rate in bytes per second.
_DEADLINE_SECONDS: Final = 60.0
_SERVER_RATE: Final = 1 << 20

_T = TypeVar("_T")


def origin_of_account(client: Client) -> Origin:
    """Return where the mail of a client's account comes from."""
    identity = client.identity
    return Origin(
        server=client.session.api_url,
        account_id=identity.account_id,
        account_name=client.account.name,
        username=identity.username,
        location=identity.location,
        origins=identity.origins,
    )


def require_digests(client: Client, alternative: str) -> None:
    """Raise UsageError if the server has no digests. `alternative` tells what to do instead."""
    if not client.can_digest:
        raise UsageError(
            f"{host_of(client.session.api_url)} has no digests (Blob/get of RFC 9404), so mail"
            f" cannot be compared without downloading it: {alternative}"
        )


@dataclass(slots=True)
class OnlineResult:
    """The result of comparing a snapshot with the server.

    `compared` mails have a digest on the server. `gone` mails are no longer there, or not under
    their ids. For `undigested` mails the server gives no digest. The findings are about files.
    """

    compared: int = 0
    gone: int = 0
    undigested: int = 0
    findings: list[Finding] = field(default_factory=list)

    def remarks(self) -> Iterator[str]:
        """Yield what was not compared, as text."""
        if self.gone:
            yield f"{_mails(self.gone)} no longer on the server, and not compared"
        if self.undigested:
            yield f"{_mails(self.undigested)} not compared: the server gives no digest"


def _mails(count: int) -> str:
    return "1 mail is" if count == 1 else f"{count:,} mails are"


class OnlineComparison:
    """Compares snapshots of one account with the server.

    Each digest is requested once, and each file is read at most once, for all snapshots. Raises
    UsageError if the server has no digests.
    """

    def __init__(self, client: Client) -> None:
        require_digests(client, "verify the snapshots without --online")
        self._client = client
        # None for the blobs that the server does not have.
        self._digests: dict[str, BlobDigest | None] = {}
        self._undigested: set[str] = set()
        self._inodes = InodeCache("sha1")
        # One thread: another thread would add findings to a mail that this one has finished.
        self._reading = trio.CapacityLimiter(1)

    def is_comparable(self, origin: Origin) -> bool:
        """Return whether a snapshot belongs to the account of the client."""
        return origin.identity.is_same_account(self._client.identity)

    def other_account(self, origin: Origin, name: str) -> ConfigError:
        """Return the error to raise for a snapshot of another account."""
        return ConfigError(
            f"{name} is a snapshot of {origin_text(origin)}, not of"
            f" {origin_text(origin_of_account(self._client))}: name its account with --online"
        )

    async def compare(
        self, directory: Path, advance: Callable[[int], None] = lambda _: None
    ) -> OnlineResult:
        """Compare the snapshot in `directory`, whose metadata files must be intact.

        `advance` is called with numbers of mails that are done. Raises StorageError if the manifest
        cannot be read, and the errors of the client.
        """
        result = OnlineResult()
        different: list[_DifferentMail] = []
        mails = (mail for _, mail in read_manifest(directory))
        batches = _batches(mails, lambda mail: mail.content_size)

        async def work(receive: trio.MemoryReceiveChannel[Sequence[SavedMail]]) -> None:
            async with receive:
                async for batch in receive:
                    different.extend(await self._compare_batch(directory, batch, result))
                    advance(len(batch))

        with lone_errors():
            async with trio.open_nursery() as nursery:
                send, receive = trio.open_memory_channel[Sequence[SavedMail]](0)
                async with send, receive:
                    for _ in range(self._client.concurrency):
                        nursery.start_soon(work, receive.clone())
                    while batch := await _in_thread(partial(next, batches, None)):
                        await send.send(batch)
        await self._add_findings(different, result)
        return result

    async def _compare_batch(
        self, directory: Path, batch: Sequence[SavedMail], result: OnlineResult
    ) -> list[_DifferentMail]:
        await self._request_digests(batch)
        different = []
        by_file: list[tuple[SavedMail, BlobDigest]] = []
        for mail in batch:
            if mail.blob_id in self._undigested:
                result.undigested += 1
            elif (digest := self._digests[mail.blob_id]) is None:
                result.gone += 1
            else:
                result.compared += 1
                if digest.algorithm == "sha":
                    by_file.append((mail, digest))
                elif digest.digest.hex() != mail.sha256:
                    different.append(_DifferentMail(mail, [one.file for one in mail.mailboxes]))
        if by_file:
            different += await _in_thread(
                partial(self._read_files, directory, by_file), self._reading
            )
        return different

    async def _request_digests(self, batch: Sequence[SavedMail]) -> None:
        sizes = {
            mail.blob_id: mail.content_size
            for mail in batch
            if mail.blob_id not in self._digests and mail.blob_id not in self._undigested
        }
        if sizes:
            deadline = _DEADLINE_SECONDS + sum(sizes.values()) / _SERVER_RATE
            digests, missing = await self._client.find_digests(sizes, deadline=Deadline(deadline))
            self._digests.update(digests)
            self._digests.update(dict.fromkeys(missing))
            self._undigested.update(sizes.keys() - self._digests.keys())

    def _read_files(
        self, directory: Path, mails: Iterable[tuple[SavedMail, BlobDigest]]
    ) -> list[_DifferentMail]:
        different = []
        for mail, digest in mails:
            findings: list[Finding] = []
            for file in (place.file for place in mail.mailboxes if is_mail_file(place.file)):
                path = f"{directory}/{file}"
                comparison = Comparison(file, digest.digest, findings, _DIFFERENT)
                # Files that cannot be read are findings of the verification without a server.
                with contextlib.suppress(OSError):
                    pending = self._inodes.compare(os.lstat(path), path, comparison)
                    if pending is not None:
                        self._inodes.read([pending])
            files = [finding.path for finding in findings if finding.detail == _DIFFERENT]
            if files:
                different.append(_DifferentMail(mail, files))
        return different

    async def _add_findings(
        self, different: Sequence[_DifferentMail], result: OnlineResult
    ) -> None:
        """Add the findings, except about mails whose ids belong to other mail on the server now."""
        if not different:
            return
        values: dict[str, EmailValues] = {}
        # An id that is a SHA-1 never belongs to another content.
        ids_prove = self._client.blob_ids_are_sha1
        if not ids_prove:
            values = await self._client.email_values(one.mail.id for one in different)
        for mail, files in different:
            now = values.get(mail.id)
            if ids_prove or (
                now is not None
                and now.blob_id == mail.blob_id
                and utc_date(now.received_at) == mail.received_at
            ):
                result.findings += [Finding(file, "altered", _DIFFERENT) for file in files]
            else:
                result.compared -= 1
                result.gone += 1


class ContentCheck:
    """Compares contents with the server before a snapshot uses them, if that is `required`.

    Raises UsageError if it is required and the server has no digests.
    """

    def __init__(self, client: Client, *, required: bool) -> None:
        if required:
            require_digests(client, "make the snapshot without --check")
        self.required = required
        self._client = client

    @property
    def is_possible(self) -> bool:
        """Whether the server has digests."""
        return self._client.can_digest

    @property
    def proves_downloads(self) -> bool:
        """Whether every download was already compared with the only digest that there is."""
        return self._client.blob_ids_are_sha1 and not self._client.digest_algorithms

    async def failures(self, files: Mapping[str, SharedFile]) -> dict[str, ServerError]:
        """Compare files; `files` has a file for each blob id.

        Return an error for each blob whose file is not what the server has, or that cannot be
        compared because the server has neither the blob nor a digest. Raises the errors of the
        client.
        """
        failures: dict[str, ServerError] = {}
        for batch in _batches(files.items(), lambda item: item[1].size):
            seconds = _DEADLINE_SECONDS + sum(file.size for _, file in batch) / _SERVER_RATE
            ids = [blob_id for blob_id, _ in batch]
            digests, missing = await self._client.find_digests(ids, deadline=Deadline(seconds))
            failures.update((one, BlobNotFoundError(_GONE)) for one in missing)
            compared = [(*item, digests[item[0]]) for item in batch if item[0] in digests]
            failures.update(await _in_thread(partial(_mismatches, compared)))
            rest = set(ids).difference(digests, missing)
            failures.update((one, ServerError(_UNDIGESTED)) for one in rest)
        return failures


def _mismatches(
    files: Iterable[tuple[str, SharedFile, BlobDigest]],
) -> dict[str, ServerError]:
    found: dict[str, ServerError] = {}
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    for blob_id, file, digest in files:
        if digest.algorithm == "sha-256":
            actual = bytes.fromhex(file.sha256)
        else:
            actual = b""
            # A file that cannot be read is not what the server has either.
            with contextlib.suppress(OSError):
                actual, _ = read_digest(file.path, buffer, "sha1")
        if actual != digest.digest:
            name = "SHA-256" if digest.algorithm == "sha-256" else "SHA-1"
            found[blob_id] = BlobMismatchError(f"its {name} is not the one on the server")
    return found


class _DifferentMail(NamedTuple):
    """A mail whose digest differs from the server's, and the files in question."""

    mail: SavedMail
    files: Sequence[str]


def _batches(items: Iterable[_T], size_of: Callable[[_T], int]) -> Iterator[Sequence[_T]]:
    batch: list[_T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) == _BATCH_MAILS or total + size > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


async def _in_thread(work: Callable[[], _T], limiter: trio.CapacityLimiter | None = None) -> _T:
    # The thread can be abandoned: Ctrl-C must work even if the disk does not answer.
    return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
