"""Content: single flight, checks and limits, over the caches, under everything that reads mail."""

from jmapfs.fetch.content import (
    DEFAULT_DOWNLOAD_TIMEOUT,
    DEFAULT_READ_TIMEOUT,
    Content,
    SizeMismatch,
    open_content,
)
from jmapfs.fetch.counters import ContentCounters
from jmapfs.fetch.flights import Flight
from jmapfs.fetch.source import BlobSource

__all__ = [
    "DEFAULT_DOWNLOAD_TIMEOUT",
    "DEFAULT_READ_TIMEOUT",
    "BlobSource",
    "Content",
    "ContentCounters",
    "Flight",
    "SizeMismatch",
    "open_content",
]
