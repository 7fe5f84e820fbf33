"""The tools of `scripts/bench`: the proxy, the peers and the check of copies."""

from __future__ import annotations

import dataclasses
import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.bench import mbsync, one_by_one
from tests.bench.one_by_one import Connection
from tests.bench.proxy import delayed
from tests.bench.source_account import SourceAccount, create_source_account, mail_files
from tests.cyrus import Cyrus
from tests.waits import wait_until

SECONDS = 10.0
ROUND_TRIP = 0.06


# --- The proxy


class _Echo(socketserver.StreamRequestHandler):
    """Sends a greeting, echoes its input, and sends a goodbye at the end."""

    def handle(self) -> None:
        self.request.sendall(b"hello\n")
        while data := self.request.recv(2**16):
            self.request.sendall(data)
        self.request.sendall(b"goodbye\n")


@contextmanager
def echo() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def receive(connection: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count and (data := connection.recv(2**16)):
        received += data
    return bytes(received)


def test_a_response_takes_a_round_trip_and_a_new_connection_two() -> None:
    with echo() as port, delayed(port, seconds=ROUND_TRIP) as (far,):
        start = time.monotonic()
        with connected(far) as connection:
            assert receive(connection, 6) == b"hello\n"
            assert time.monotonic() - start >= 2 * ROUND_TRIP
            for _ in range(3):
                start = time.monotonic()
                connection.sendall(b"x")
                assert receive(connection, 1) == b"x"
                assert time.monotonic() - start >= ROUND_TRIP


def test_the_first_bytes_wait_for_the_handshake() -> None:
    with echo() as port, delayed(port, seconds=ROUND_TRIP) as (far,):
        start = time.monotonic()
        with connected(far) as connection:
            connection.sendall(b"first")
            assert receive(connection, 11) == b"hello\nfirst"
        assert time.monotonic() - start >= 2 * ROUND_TRIP


def test_bytes_arrive_in_order_on_many_connections() -> None:
    chance = random.Random(7)

    def talk(content: bytes) -> bytes:
        with connected(far) as connection, ThreadPoolExecutor(1) as sender:
            sent = sender.submit(send_in_pieces, connection, content)
            received = receive(connection, len(content) + 14)
            sent.result()
            # The proxy passes the end of the stream on.
            assert connection.recv(1) == b""
        return received

    contents = [chance.randbytes(size) for size in (0, 1, 1_000, 2**20, 3 * 2**20, 5 * 2**20)]
    with (
        echo() as port,
        delayed(port, seconds=0.02) as (far,),
        ThreadPoolExecutor(len(contents)) as clients,
    ):
        for content, received in zip(contents, clients.map(talk, contents), strict=True):
            assert received == b"hello\n" + content + b"goodbye\n"


def send_in_pieces(connection: socket.socket, content: bytes) -> None:
    start = 0
    for size in (1, 10, 100, 10_000, len(content)):
        connection.sendall(content[start : start + size])
        start += size
    connection.shutdown(socket.SHUT_WR)


def test_segments_do_not_wait_for_each_other() -> None:
    with echo() as port, delayed(port, seconds=ROUND_TRIP) as (far,), connected(far) as connection:
        receive(connection, 6)
        start = time.monotonic()
        for _ in range(200):
            connection.sendall(b"y" * 100)
        assert receive(connection, 20_000) == b"y" * 20_000
        assert time.monotonic() - start < 200 * ROUND_TRIP / 2


def test_closed_connections_leave_no_open_file_in_the_proxy() -> None:
    with echo() as port, delayed(port, seconds=0.01) as (far,):
        # A server of other tests may be another child.
        children = psutil.Process().children()
        (proxy,) = [one for one in children if "tests.bench.proxy" in one.cmdline()]
        before = proxy.num_fds()
        for number in range(20):
            with connected(far) as connection:
                receive(connection, 6)
                connection.sendall(b"x")
                # The client and the server take turns to close first.
                if number % 2:
                    connection.shutdown(socket.SHUT_WR)
                    assert receive(connection, 100) == b"xgoodbye\n"
        wait_until(lambda: proxy.num_fds() == before)


def test_the_connection_to_a_missing_server_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with delayed(port, seconds=0.01) as (far,), connected(far) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b""


def test_several_ports_lead_to_several_servers() -> None:
    with echo() as one, echo() as other, delayed(one, other, seconds=0.01) as ports:
        assert len(set(ports) - {one, other}) == 2
        for port in ports:
            with connected(port) as connection:
                assert receive(connection, 6) == b"hello\n"


# --- The peers


@pytest.fixture(scope="module")
def source(cyrus: Cyrus) -> SourceAccount:
    return create_source_account(cyrus, "bench-peers", {"INBOX": 40, "Work": 10, "Work/Été": 5})


def test_every_peer_copies_all_mail(source: SourceAccount, tmp_path: Path) -> None:
    with source.with_latency(0.01) as account:
        mbsync.copy(account, tmp_path / "mbsync")
        blobs = one_by_one.blob_ids(account)
        assert len(blobs) == 55
        for kind in Connection:
            one_by_one.download(account, blobs, tmp_path / kind.name, kind)
    source.check(mbsync.mails(tmp_path / "mbsync"), "mbsync", without_cr=True)
    for kind in Connection:
        source.check(mail_files(tmp_path / kind.name), kind.value)


def test_the_loop_can_copy_one_mailbox(source: SourceAccount) -> None:
    assert len(one_by_one.blob_ids(source.account, "Work")) == 10


def test_each_kind_of_connection_is_tried(source: SourceAccount) -> None:
    blobs = one_by_one.sample(one_by_one.blob_ids(source.account), 7)
    assert 4 <= len(blobs) <= 7
    trial = one_by_one.try_connections(source.account, blobs)
    assert trial.rates.keys() == set(Connection)
    assert trial.rates[trial.fastest] == max(trial.rates.values())


def test_an_incomplete_copy_is_detected(source: SourceAccount) -> None:
    mails = [source.account.download(blob) for blob in one_by_one.blob_ids(source.account)]
    source.check(mails, "all")
    with pytest.raises(RuntimeError, match="1 are missing, 0 are different"):
        source.check(mails[1:], "one less")
    with pytest.raises(RuntimeError, match="1 are missing, 1 are different"):
        source.check([mails[0][:-1], *mails[1:]], "one that is cut")
    with pytest.raises(RuntimeError, match="56 mails of 55"):
        source.check([*mails, mails[0]], "one twice")


def test_a_peer_without_access_fails(source: SourceAccount, tmp_path: Path) -> None:
    stranger = dataclasses.replace(source.account, password="wrong")
    with pytest.raises(RuntimeError, match="mbsync"):
        mbsync.copy(stranger, tmp_path / "mbsync")
    blobs = one_by_one.blob_ids(source.account, "Work")
    for kind in (Connection.KEPT_ALIVE, Connection.NEW):
        with pytest.raises(RuntimeError, match="HTTP 401"):
            one_by_one.download(stranger, blobs, tmp_path / kind.name, kind)
