"""What the server was asked, for tests that promise "0 downloads" or "at most 4 at a time"."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """Counted since the start, or since the last reset; the control endpoint is left out."""

    http_requests: int = 0
    places: Counter[str] = field(default_factory=Counter)  # requests: session, api, download, push
    statuses: Counter[str] = field(default_factory=Counter)  # answers, by HTTP status
    methods: Counter[str] = field(default_factory=Counter)  # calls, by JMAP method
    blobs: Counter[str] = field(default_factory=Counter)  # by blob id: downloads and Blob/get
    bytes_sent: int = 0  # of response bodies
    max_concurrent: int = 0  # API requests and downloads at one time
    max_concurrent_api: int = 0
    push_streams: int = 0  # opened
    authorized_hosts: Counter[str] = field(default_factory=Counter)  # Host with Authorization
    headers: dict[str, Counter[str]] = field(default_factory=dict)  # name, value; see `see_header`

    def see_header(self, name: str, value: str) -> None:
        self.headers.setdefault(name, Counter())[value] += 1

    @property
    def blob_reads(self) -> int:
        """How often any blob was asked for."""
        return sum(self.blobs.values())

    def reset(self) -> None:
        self.__dict__.update(Counts().__dict__)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Counts:
        """Return counts as they came over the control endpoint; what is missing in one is 0."""
        counters = {
            name: Counter(value)
            for name, value in values.items()
            if isinstance(value, dict) and name != "headers"
        }
        headers = {name: Counter(seen) for name, seen in values["headers"].items()}
        return cls(**{**values, **counters, "headers": headers})
