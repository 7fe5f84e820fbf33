"""A peer: a loop of JMAP downloads, one request after the other, like simple backup scripts.

The list of blob ids is not part of the measured time. Then there is a GET of the download URL
(RFC 8620 §6.2) for each mail, which is written to a file.

The speed of the loop depends on its connection. Over a persistent HTTP/1.1 connection on loopback,
Cyrus appears ten times slower: it sends a response in two segments, and its Nagle algorithm delays
the second one until the client's delayed ACK of the first. Therefore all kinds of connection are
tried, and the fastest one is the peer.
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
from tests.bench.harness import bench_directory
from tests.cyrus import Account
from tests.mail_server.account import TIMEOUT

_PAGE = 1_000

_Get = Callable[[str], bytes]


class Connection(enum.Enum):
    """The kind of connection of the loop."""

    KEPT_ALIVE = "HTTP/1.1, kept alive"
    NEW = "HTTP/1.1, a new connection each"
    HTTP2 = "HTTP/2"


@dataclass(frozen=True)
class Trial:
    """The rate of each kind of connection for the same mails, in mails per second."""

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
    """Return the blob ids of all mails or of one mailbox, in the order of receipt."""
    mailbox_id = account.mailbox_ids()[mailbox] if mailbox else None
    ids = account.email_ids(mailbox_id)
    found: list[str] = []
    for start in range(0, len(ids), _PAGE):
        page = {"ids": ids[start : start + _PAGE], "properties": ["blobId"]}
        found += (one["blobId"] for one in account.jmap(("Email/get", page))[0]["list"])
    return found


def sample(blobs: Sequence[str], count: int) -> Sequence[str]:
    """Return at most `count` blobs, spread over the whole account."""
    return blobs[:: max(1, -(-len(blobs) // count))]


def try_connections(account: Account, blobs: Sequence[str]) -> Trial:
    """Download these mails over each kind of connection."""
    rates = {}
    for kind in Connection:
        with bench_directory() as directory:
            rates[kind] = len(blobs) / download(account, blobs, directory, kind)
    return Trial(rates)


def download(account: Account, blobs: Sequence[str], directory: Path, kind: Connection) -> float:
    """Write each mail to its own file; return the duration in seconds."""
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
        yield lambda path: _get(connection, path, {"Authorization": _authorization(account)})


@contextlib.contextmanager
def _new(account: Account) -> Iterator[_Get]:
    fields = {"Authorization": _authorization(account), "Connection": "close"}

    def get(path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", account.http_port, TIMEOUT)
        with contextlib.closing(connection):
            return _get(connection, path, fields)

    yield get


@contextlib.contextmanager
def _http2(account: Account) -> Iterator[_Get]:
    # With prior knowledge (RFC 9113 §3.3), which Cyrus accepts.
    with httpx.Client(
        http1=False,
        http2=True,
        base_url=f"http://127.0.0.1:{account.http_port}",
        auth=(account.name, account.password),
        timeout=TIMEOUT,
        # There is no TLS, and loading the certificates takes longer than many mails.
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        trust_env=False,
    ) as client:
        yield lambda path: client.get(path).raise_for_status().content


_CLIENTS = {Connection.KEPT_ALIVE: _kept_alive, Connection.NEW: _new, Connection.HTTP2: _http2}


def _get(connection: http.client.HTTPConnection, path: str, fields: Mapping[str, str]) -> bytes:
    connection.request("GET", path, headers=dict(fields))
    with connection.getresponse() as response:
        content = response.read()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"HTTP {response.status} for {path}")
    return content


def _authorization(account: Account) -> str:
    credentials = f"{account.name}:{account.password}".encode()
    return f"Basic {base64.b64encode(credentials).decode()}"
