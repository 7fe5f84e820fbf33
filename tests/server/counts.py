"""Counts of requests, for tests of promises such as "no download" or "at most 4 at a time"."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """Counts since the start or the last reset; the control endpoint is not counted."""

    http_requests: int = 0
    endpoints: Counter[str] = field(default_factory=Counter)  # session, api, download, push
    statuses: Counter[str] = field(default_factory=Counter)  # responses, by HTTP status
    methods: Counter[str] = field(default_factory=Counter)  # calls, by JMAP method
    pages: int = 0  # of Email/query, without the queries that only ask for the total
    sorted_pages: int = 0  # … of these, those with a sort order
    totals: int = 0  # queries that only ask for the total
    blobs: Counter[str] = field(default_factory=Counter)  # by blob id: downloads and Blob/get
    bytes_sent: int = 0  # of response bodies
    max_concurrent: int = 0  # API requests and downloads at the same time
    max_concurrent_api: int = 0
    push_streams: int = 0  # opened
    authorized_hosts: Counter[str] = field(default_factory=Counter)  # Host, if authorized
    headers: dict[str, Counter[str]] = field(default_factory=dict)

    def count_header(self, name: str, value: str) -> None:
        self.headers.setdefault(name, Counter())[value] += 1

    @property
    def blob_reads(self) -> int:
        """How many blobs were requested, repetitions included."""
        return sum(self.blobs.values())

    def reset(self) -> None:
        self.__dict__.update(Counts().__dict__)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Counts:
        """Return the counts in a response of the control endpoint; a missing key counts 0."""
        counters = {
            name: Counter(value)
            for name, value in values.items()
            if isinstance(value, dict) and name != "headers"
        }
        headers = {name: Counter(seen) for name, seen in values["headers"].items()}
        return cls(**{**values, **counters, "headers": headers})
