"""A peer: a plain JMAP download loop, one request a mail, as backup scripts do it.

The list of blob ids comes first and does not count; then there is one GET after the other by the
download URL (RFC 8620 §6.2), each mail into a file.

The loop is as fast as its connection. Over one kept-alive HTTP/1.1 connection on loopback Cyrus
seems ten times slower than it is: it sends an answer in two pieces, and its Nagle algorithm holds
the second one back until the client's delayed ACK of the first. So all kinds of connection are
tried, and the fastest is the peer.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import http.client
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx

from tests.bench.figures import Figure
from tests.bench.surroundings import bench_directory
from tests.cyrus import Account
from tests.cyrus.account import TIMEOUT

_PAGE = 1_000

_Get = Callable[[str], bytes]


class Connection(enum.Enum):
    """How the loop talks to the server."""

    KEPT_ALIVE = "HTTP/1.1, kept alive"
    NEW = "HTTP/1.1, a new connection each"
    HTTP2 = "HTTP/2"


@dataclass(frozen=True)
class Trial:
    """What each kind of connection did with the same few mails, in mails a second."""

    rates: Mapping[Connection, float]

    @property
    def fastest(self) -> Connection:
        return max(self.rates, key=self.rates.__getitem__)

    def figures(self, where: str) -> list[Figure]:
        return [
            Figure(f"one-by-one loop over {kind.value}, {where}", "mails/s", (rate,))
            for kind, rate in self.rates.items()
        ]


def blob_ids(account: Account, mailbox: str | None = None) -> list[str]:
    """Return the blob ids of all mails, or those of one mailbox, in the order of receipt."""
    mailbox_id = account.mailbox_ids()[mailbox] if mailbox else None
    ids = account.email_ids(mailbox_id)
    found: list[str] = []
    for start in range(0, len(ids), _PAGE):
        page = {"ids": ids[start : start + _PAGE], "properties": ["blobId"]}
        found += (one["blobId"] for one in account.jmap(("Email/get", page))[0]["list"])
    return found


def spread(blobs: Sequence[str], count: int) -> Sequence[str]:
    """Return at most `count` of them, from all over the account."""
    return blobs[:: max(1, -(-len(blobs) // count))]


def attempt(account: Account, blobs: Sequence[str]) -> Trial:
    """Download these mails over each kind of connection."""
    rates = {}
    for kind in Connection:
        with bench_directory() as directory:
            rates[kind] = len(blobs) / download(account, blobs, directory, kind)
    return Trial(rates)


def download(account: Account, blobs: Sequence[str], directory: Path, kind: Connection) -> float:
    """Write each mail into a file of its own; return how many seconds it took."""
    directory.mkdir(exist_ok=True)
    start = time.perf_counter()
    with _CLIENTS[kind](account) as get:
        for blob_id in blobs:
            (directory / f"{blob_id}.eml").write_bytes(get(_path(account, blob_id)))
    return time.perf_counter() - start


def _path(account: Account, blob_id: str) -> str:
    return f"/jmap/download/{quote(account.name)}/{quote(blob_id)}/mail.eml?accept=message/rfc822"


@contextlib.contextmanager
def _kept_alive(account: Account) -> Iterator[_Get]:
    connection = http.client.HTTPConnection("127.0.0.1", account.http_port, TIMEOUT)
    with contextlib.closing(connection):
        yield lambda path: _answer(connection, path, {"Authorization": _secret(account)})


@contextlib.contextmanager
def _new(account: Account) -> Iterator[_Get]:
    fields = {"Authorization": _secret(account), "Connection": "close"}

    def get(path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", account.http_port, TIMEOUT)
        with contextlib.closing(connection):
            return _answer(connection, path, fields)

    yield get


@contextlib.contextmanager
def _http2(account: Account) -> Iterator[_Get]:
    # With prior knowledge (RFC 9113 §3.3), which Cyrus takes.
    with httpx.Client(
        http1=False,
        http2=True,
        base_url=f"http://127.0.0.1:{account.http_port}",
        auth=(account.name, account.password),
        timeout=TIMEOUT,
        # There is no TLS here, and loading the certificates takes longer than many mails.
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        trust_env=False,
    ) as client:
        yield lambda path: client.get(path).raise_for_status().content


_CLIENTS = {Connection.KEPT_ALIVE: _kept_alive, Connection.NEW: _new, Connection.HTTP2: _http2}


def _answer(connection: http.client.HTTPConnection, path: str, fields: Mapping[str, str]) -> bytes:
    connection.request("GET", path, headers=dict(fields))
    with connection.getresponse() as response:
        content = response.read()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"HTTP {response.status} for {path}")
    return content


def _secret(account: Account) -> str:
    both = f"{account.name}:{account.password}".encode()
    return f"Basic {base64.b64encode(both).decode()}"
