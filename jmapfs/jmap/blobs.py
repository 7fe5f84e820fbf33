"""Downloads of blobs from the session's download URL (RFC 8620 §6.2): whole, or as a stream.

A blob is immutable. So if a download breaks off, it is started again. The bytes that the caller
already has are compared and skipped. A download that cannot be completed ends with an error, so its
content cannot be taken for a whole blob.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote

from jmapfs.deadline import Deadline
from jmapfs.errors import BlobMismatchError, BlobNotFoundError, RequestError, printable
from jmapfs.jmap.api import DEFAULT_DEADLINE, Api
from jmapfs.jmap.http_errors import TransientError
from jmapfs.jmap.response import HttpRequest, RequestKind, ResponseReader
from jmapfs.jmap.retry import RetryPolicy

# Cyrus uses the header Accept. Compression only takes time: mail is small or already compressed.
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity"}
# Caches between jmapfs and the server must ask the server again.
_FRESH_HEADERS = {**_HEADERS, "Cache-Control": "no-cache"}
_VARIABLE = re.compile(r"\{([^{}]*)\}")
# To bound memory, a blob may exceed its expected size only by this many bytes.
_MARGIN = 64 * 2**20
_LARGEST_BLOB = 1 << 30


def expand(template: str, values: Mapping[str, str]) -> str:
    """Expand a URI template of level 1 (RFC 6570 §3.2.2). A variable without a value is empty."""

    def value(match: re.Match[str]) -> str:
        text = values.get(match[1], "")
        # A path segment of only dots, such as `..`, would change the path.
        return text.replace(".", "%2E") if text.strip(".") == "" else quote(text, safe="")

    return _VARIABLE.sub(value, template)


class BlobStream:
    """An asynchronous iterator over the chunks of a blob, to be used by one task.

    `content_type` is the media type of the response in lower case, without parameters. It is empty
    before the first chunk, and if the server sends none. `announced_length` is the length of the
    blob that the response announces, or None. Each chunk moves the deadline.
    """

    def __init__(
        self, api: Api, values: Mapping[str, str], deadline: Deadline, *, fresh: bool
    ) -> None:
        self.content_type = ""
        self.announced_length: int | None = None
        self._api = api
        self._values = values
        self._deadline = deadline
        self._fresh = fresh
        self._retries = RetryPolicy(deadline)
        self._attempt = AsyncExitStack()
        self._reader: ResponseReader | None = None
        self._returned = 0
        self._digest = hashlib.blake2b()
        self._ended = False

    def __aiter__(self) -> BlobStream:
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes, at least one.

        Raises:
            BlobNotFoundError: the server does not have the blob.
            BlobMismatchError: two attempts received different contents.
            JmapfsError: any error of Transport.fetch.
        """
        while not self._ended:
            try:
                if self._reader is None:
                    self._reader = await self._open()
                    await self._skip_returned(self._reader)
                chunk = await self._receive(self._reader)
            except TransientError as failure:
                await self.aclose()
                await self._retries.wait_after(failure)
                continue
            if not chunk:
                self._ended = True
                self._api.traffic.blobs += 1
                await self.aclose()
                break
            self._returned += len(chunk)
            self._digest.update(chunk)
            return chunk
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the current attempt to download the blob."""
        self._reader = None
        await self._attempt.aclose()

    async def _open(self) -> ResponseReader:
        session = await self._api.current_session(self._deadline)
        url = expand(session.download_url, self._values)
        request = HttpRequest(
            method="GET",
            url=url,
            kind=RequestKind.DOWNLOAD,
            headers=_FRESH_HEADERS if self._fresh else _HEADERS,
            new_connection=self._fresh,
        )
        exchange = self._api.transport.exchange(request, deadline=self._deadline)
        try:
            reader = await self._attempt.enter_async_context(exchange)
        except RequestError as error:
            if error.status in {404, 410}:
                raise BlobNotFoundError(f"the server does not have the {self._name()}") from error
            raise
        self.content_type = reader.headers.get("content-type", "").partition(";")[0].strip().lower()
        self.announced_length = reader.announced_length
        return reader

    async def _receive(self, reader: ResponseReader) -> bytes:
        chunk = await reader.next_chunk()
        self._api.traffic.bytes += len(chunk)
        return chunk

    async def _skip_returned(self, reader: ResponseReader) -> None:
        """Read the bytes of the earlier attempts again, and check that they are the same."""
        left, digest = self._returned, hashlib.blake2b()
        while left:
            chunk = await self._receive(reader)
            if not chunk:
                raise BlobMismatchError(f"the {self._name()} is shorter than it was a moment ago")
            digest.update(chunk[:left])
            surplus = chunk[left:]
            left = max(0, left - len(chunk))
            if surplus:
                reader.put_back(surplus)
                # The next `_receive` returns the surplus and counts it again.
                self._api.traffic.bytes -= len(surplus)
        if digest.digest() != self._digest.digest():
            raise BlobMismatchError(f"the {self._name()} is not what it was a moment ago")

    def _name(self) -> str:
        return f"blob {printable(self._values['blobId'], 80)}"


class BlobMethods(Api):
    """Downloads of blobs. Each takes one request of the transport's budget until it ends."""

    async def download_blob(
        self, blob_id: str, *, size_hint: int | None = None, deadline: Deadline | None = None
    ) -> bytes:
        """Return the whole content of a blob.

        `size_hint` is the expected size in bytes. The caller has to compare the length of the
        content with `size_hint`: this method only rejects a content that is over 64 MiB larger. The
        default of `deadline` is that of `stream_blob`. Raises the same errors as BlobStream.
        """
        largest = _LARGEST_BLOB if size_hint is None else size_hint + _MARGIN
        content = bytearray()
        async with self.stream_blob(blob_id, deadline=deadline) as chunks:
            async for chunk in chunks:
                content += chunk
                if len(content) > largest:
                    raise BlobMismatchError(
                        f"the blob {printable(blob_id, 80)} is far larger than expected: "
                        f"more than {largest:,} bytes"
                    )
        return bytes(content)

    @asynccontextmanager
    async def stream_blob(
        self, blob_id: str, *, fresh: bool = False, deadline: Deadline | None = None
    ) -> AsyncIterator[BlobStream]:
        """Open a blob for reading chunk by chunk; the first read sends the request.

        With `fresh`, each attempt uses a new connection, and caches are asked not to answer. The
        last chunk must arrive before the deadline. By default this is DEFAULT_DEADLINE seconds from
        now, apart from the time that the chunks earn. The content is whole only if the iteration
        reaches its end. The iteration raises the same errors as BlobStream.
        """
        values = {
            "accountId": self.account_id,
            "blobId": blob_id,
            "name": "blob",
            "type": "application/octet-stream",
        }
        stream = BlobStream(self, values, deadline or Deadline(DEFAULT_DEADLINE), fresh=fresh)
        try:
            yield stream
        finally:
            await stream.aclose()
