"""Content: single flight, checks and limits, over the caches, under everything that reads mail."""

from jmapfs.fetch.ahead import ReadAhead
from jmapfs.fetch.bulk import Lane
from jmapfs.fetch.checking import ContentCheck
from jmapfs.fetch.content import (
    DEFAULT_DOWNLOAD_TIMEOUT,
    DEFAULT_READ_TIMEOUT,
    Content,
    open_content,
)
from jmapfs.fetch.counters import ContentCounters
from jmapfs.fetch.flights import Flight
from jmapfs.fetch.mismatches import SizeMismatch
from jmapfs.fetch.prefetch import Checked, Fetched, Prefetcher, is_obstacle
from jmapfs.fetch.source import BatchLimits, BlobSource
from jmapfs.fetch.supply import PageCache

__all__ = [
    "DEFAULT_DOWNLOAD_TIMEOUT",
    "DEFAULT_READ_TIMEOUT",
    "BatchLimits",
    "BlobSource",
    "Checked",
    "Content",
    "ContentCheck",
    "ContentCounters",
    "Fetched",
    "Flight",
    "Lane",
    "PageCache",
    "Prefetcher",
    "ReadAhead",
    "SizeMismatch",
    "is_obstacle",
    "open_content",
]
