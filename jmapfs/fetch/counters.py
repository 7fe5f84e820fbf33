"""What the content service has done since it was opened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ContentCounters:
    """Counts, from 0.

    `memory_hits` and `disk_hits` are reads; `waits` are reads that joined a download (or a look at
    the disk) under way; `recalled` are blobs that were read ahead from the disk, `ahead` those from
    the server; `downloads` and `downloaded_bytes` are all that came whole; `failures` are flights
    that ended with an error; `mismatches` blobs of another length or digest than promised; `unkept`
    blobs that were served but not written to the disk cache.
    """

    memory_hits: int = 0
    disk_hits: int = 0
    waits: int = 0
    recalled: int = 0
    ahead: int = 0
    downloads: int = 0
    downloaded_bytes: int = 0
    failures: int = 0
    mismatches: int = 0
    unkept: int = 0
