"""Limits and faults that a test can set while the server runs.

The defaults are a well-behaved server. Set the fields directly in the process of the server, or
by name through the control endpoint. The counts of faults are decremented with each fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import msgspec

from .lies import Lie, LieRoute

EndpointName = Literal["session", "api", "download", "push"]
SessionBody = Literal["good", "not-json", "truncated", "wrong-types", "html"]
DownloadFault = Literal["short", "cut", "stall", "wrong-bytes", "wrong-length", "not-found"]
BlobFault = Literal[
    "wrong-bytes", "wrong-length", "wrong-size", "truncated", "not-found", "null", "not-base64"
]
PushMode = Literal["on", "off", "not-found", "forbidden", "dies", "pings-only"]

BLOB = "urn:ietf:params:jmap:blob"
CYRUS_BLOB = "https://cyrusimap.org/ns/jmap/blob"
CYRUS_MAIL = "https://cyrusimap.org/ns/jmap/mail"

ODD_VALUES = {
    "null": "null",
    "missing": "",
    "number": "5",
    "string": '"x"',
    "list": '["x"]',
    "object": '{"x": true}',
    "float": "1.5",
    "huge": "1e999",
    "long": "9" * 30,
    "negative": "-1",
    "most": str(2**53 - 1),  # the largest number of JMAP
    "date": '"32547-12-05T15:30:08Z"',
    "text": '"a\\u0000b\\ud800c\xff"',
}
"""The JSON text of each kind of odd value for `Quirks.odd_values`; "" removes the property."""


@dataclass
class Status:
    """The status of the next `count` requests to an endpoint (-1: all), after `skip` good ones."""

    endpoint: EndpointName
    status: int
    count: int = 1
    skip: int = 0
    retry_after: str | None = None
    location: str | None = None
    detail: str = "Requested by the test"


@dataclass
class MethodFault:
    """The next `count` calls of a method get an error (-1: all), after `skip` good ones."""

    method: str
    error: str = "serverFail"
    count: int = 1
    skip: int = 0


@dataclass
class PageChange:
    """A change to an account just before a page of a listing, once."""

    page: int  # page 1 is the query without anchor and position; Email/get with ids counts too
    method: str  # an operation of Account
    arguments: dict[str, Any]
    account: str | None = None  # None: the primary one


@dataclass
class Quirks:
    """The settings, by subject."""

    # Limits
    max_objects_in_get: int = 500
    max_calls_in_request: int = 16
    max_concurrent_requests: int = 8
    max_size_request: int = 10_000_000
    count_downloads: bool = False  # … as concurrent requests too, like Stalwart
    concurrency_status: int = 400  # the HTTP status beyond the limit

    # Session
    absolute_urls: bool = True
    redirect_well_known: bool = True
    mail_capability: bool = True
    account_capabilities_null: bool = False
    session_body: SessionBody = "good"
    session_overrides: dict[str, Any] = field(default_factory=dict)  # its top-level fields

    # Any request
    statuses: list[Status] = field(default_factory=list)
    request_delay: float = 0.0  # seconds before each response: a round trip
    download_delay: float = 0.0  # … in addition, for a download
    hang: list[EndpointName] = field(default_factory=list)  # accept, but never answer

    # Downloads and Blob/get
    download_fault: DownloadFault | None = None
    download_fault_count: int = -1
    blob_get: bool = True
    blob_capability: str = BLOB
    blob_fault: BlobFault | None = None  # of Blob/get
    max_blob_bytes: int | None = None  # content in one response, else requestTooLarge
    fault_blob_ids: list[str] = field(default_factory=list)  # empty: all blobs
    wrong_length_by: int = 7  # bytes that "wrong-length" adds, or removes if negative
    digests: list[str] = field(default_factory=lambda: ["sha", "sha-256"])  # of Blob/get
    sha1_blob_ids: bool = False  # give all blobs such ids, and show the capability of Cyrus

    # Lies (see lies.py)
    lie: Lie | None = None
    lie_routes: list[LieRoute] = field(default_factory=lambda: ["download", "blob-get"])
    lie_count: int = -1  # of blobs, on all routes together
    lie_blob_ids: list[str] = field(default_factory=list)  # empty: all blobs
    lie_equal_size: bool = False  # of "html" and "other-mail": the size of the real blob

    # Push
    push: PushMode = "on"
    push_without_type: bool = False  # StateChange without @type, like Fastmail
    push_ping: float | None = None  # seconds between pings, overrides the request
    ping_in_ms: bool = False  # the interval in the ping event, like Stalwart

    # Changes
    has_more_lies: bool = False  # the old state with hasMoreChanges true
    alternating_states: bool = False  # … or two states in turn, without an end
    cannot_calculate: bool = False
    unknown_state_error: str = "cannotCalculateChanges"  # Cyrus: invalidArguments
    max_changes: int | None = None  # the limit of the server

    # Query and get
    query_limit: int | None = None  # the limit of the server
    accepted_limits: tuple[int, int] = (0, 2**53)  # others get invalidArguments
    short_pages: bool = False  # pages of Email/query that are shorter than the limit
    no_anchors: bool = False  # invalidArguments, as on James; negative positions too
    no_sort: bool = False  # any sort is unsupportedSort
    moving_order: bool = False  # a sorted list has another order on each page, like Stalwart's
    no_total: bool = False  # Email/query never has a total
    page_total: bool = False  # the total is the number of ids on the page
    phantom_ids: list[str] = field(
        default_factory=list
    )  # Email/query lists them; they do not exist
    anchor_lost_at_pages: list[int] = field(default_factory=list)  # once each
    page_changes: list[PageChange] = field(default_factory=list)
    unlisted_ids: list[str] = field(default_factory=list)  # not in Email/query, but counted
    ghost_ids: list[str] = field(default_factory=list)  # … and not counted: gone, but returned
    omit_ids: list[str] = field(default_factory=list)  # missing from the response to Email/get
    not_found_ids: list[str] = field(default_factory=list)  # … wrongly in notFound
    missing_properties: list[str] = field(default_factory=list)  # never in an Email
    null_from: bool = False
    null_subject: bool = False
    size_offsets: dict[str, int] = field(default_factory=dict)  # by Email id; "*" is for all
    email_overrides: dict[str, dict[str, Any]] = field(default_factory=dict)  # by Email id
    method_faults: list[MethodFault] = field(default_factory=list)
    # Values instead of the real ones, by id of an Email or Mailbox ("session" for the Session) and
    # path of the property. Each is sent as it is, in Latin-1; an empty one removes the property.
    odd_values: dict[str, dict[str, str]] = field(default_factory=dict)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set fields from JSON values, all or none.

        Raises:
            ValueError: a field is unknown, or a value has the wrong type.
        """
        known = {each.name for each in fields(self)}
        if unknown := set(values) - known:
            raise ValueError(f"unknown quirk: {', '.join(sorted(unknown))}")
        merged = msgspec.convert({**msgspec.to_builtins(self), **values}, Quirks)
        for name in values:
            setattr(self, name, getattr(merged, name))

    def reset(self) -> None:
        """Return to a well-behaved server."""
        self.__dict__.update(Quirks().__dict__)

    def status_for(self, endpoint: EndpointName) -> Status | None:
        """Return the status for the next request to an endpoint, and count it."""
        matching = [each for each in self.statuses if each.endpoint == endpoint]
        return next((each for each in matching if _due(each)), None)

    def error_for(self, method: str) -> str | None:
        """Return the error for the next call of a method, and count it."""
        matching = [each for each in self.method_faults if each.method == method]
        return next((each.error for each in matching if _due(each)), None)

    def with_odd_values(self, object_id: str, document: dict[str, Any]) -> dict[str, Any]:
        """Return the document of an object with the odd values."""
        for path, text in self.odd_values.get(object_id, {}).items():
            *parents, name = path.split("/")
            document = place = dict(document)
            for parent in parents:
                place[parent] = place = dict(place[parent])
            if text:
                place[name] = msgspec.Raw(text.encode("latin-1"))
            else:
                place.pop(name, None)
        return document

    def download_fault_for(self, blob_id: str) -> DownloadFault | None:
        """Return the fault for this download, and count it."""
        if self.download_fault is None or self.download_fault_count == 0:
            return None
        if self.fault_blob_ids and blob_id not in self.fault_blob_ids:
            return None
        self.download_fault_count -= self.download_fault_count > 0
        return self.download_fault

    def blob_fault_for(self, blob_id: str) -> BlobFault | None:
        """Return the fault for this blob in Blob/get."""
        if self.fault_blob_ids and blob_id not in self.fault_blob_ids:
            return None
        return self.blob_fault


def _due(fault: Status | MethodFault) -> bool:
    if fault.skip > 0:
        fault.skip -= 1
        return False
    if fault.count > 0:
        fault.count -= 1
        return True
    return fault.count < 0
