"""The content coding of an answer: gzip, or none.

httpx decodes too, but neither tells a compressed body that is cut from a whole one, nor bounds
what a small one may grow to.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from jmapfs.errors import ProtocolError
from jmapfs.jmap.wording import printable

_STEP = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS


class Decoder:
    """Decodes a body piece by piece; gzip, or none at all."""

    def __init__(self, coding: str, host: str) -> None:
        name = coding.strip().lower()
        self._unknown = "" if name in {"", "identity", "gzip", "x-gzip"} else name
        self._host = host
        self._gzip = zlib.decompressobj(_GZIP) if name in {"gzip", "x-gzip"} else None
        self._begun = False

    @property
    def whole(self) -> bool:
        """Whether what was decoded so far can be all: no gzip stream is open."""
        return self._gzip is None or self._gzip.eof or not self._begun

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` decodes to, in pieces of bounded size, some of them empty.

        Raises ProtocolError for a coding that is not known, or broken.
        """
        if self._unknown:
            raise ProtocolError(
                f"{self._host} sends its answer in a coding that was not asked for: "
                f"{printable(self._unknown, 40)}"
            )
        if self._gzip is None:
            yield data
            return
        while data:
            if self._gzip.eof:
                # One gzip file after the other is a gzip file (RFC 1952 §2.2).
                self._gzip = zlib.decompressobj(_GZIP)
            self._begun = True
            try:
                piece = self._gzip.decompress(data, _STEP)
            except zlib.error:
                raise ProtocolError(
                    f"{self._host} sent an answer whose compression is broken"
                ) from None
            data = self._gzip.unconsumed_tail or self._gzip.unused_data
            yield piece
