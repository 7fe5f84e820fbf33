"""The fault proxy forwards everything, and injects each fault into the requests it is meant for."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.faults import BY_NAME, FAULTS, Fault
from tests.faults.proxy import CONTENT, FaultProxy, Kind, fault_proxy, make_certificate
from tests.server import ServerProcess, server_process

AUTH = ("alice@example.org", "secret")
CALLS = {"using": ["urn:ietf:params:jmap:core"], "methodCalls": [["Core/echo", {"a": 1}, "0"]]}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process("sample") as server:
        server.control.counts()  # opens its connection, which would be a leak of a test
        yield server


@pytest.fixture(scope="module")
def proxy(server: ServerProcess) -> Iterator[FaultProxy]:
    with fault_proxy(server.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (path := make_certificate(tmp_path_factory.mktemp("tls"))) is None:
        pytest.skip("openssl makes the certificate, and is not installed")
    return path


def get(url: str, certificate: Path | None = None, seconds: float = 10) -> httpx.Response:
    context = ssl.create_default_context(cafile=certificate)
    return httpx.get(url, auth=AUTH, verify=context, trust_env=False, timeout=seconds)


def session_of(proxy: FaultProxy, certificate: Path | None = None) -> dict[str, str]:
    session: dict[str, str] = json.loads(get(f"{proxy.url}/session", certificate).content)
    return session


def test_a_session_names_the_proxy(server: ServerProcess, proxy: FaultProxy) -> None:
    session = session_of(proxy)
    for name in ("apiUrl", "downloadUrl", "eventSourceUrl"):
        assert session[name].startswith(proxy.url)
    assert server.url not in json.dumps(session)


def test_requests_are_counted_by_kind(server: ServerProcess, proxy: FaultProxy) -> None:
    api = session_of(proxy)["apiUrl"]
    before = proxy.requests.copy()
    blob = server.control.dump().emails[0].blob_id
    downloaded = get(f"{proxy.url}/jmap/download/Aprimary/{blob}/x")
    assert downloaded.content == server.control.blob(blob)
    assert httpx.post(api, json=CALLS, auth=AUTH, trust_env=False).status_code == 200
    calls = {**CALLS, "methodCalls": [["Blob/get", {"ids": [blob]}, "0"]]}
    assert httpx.post(api, json=calls, auth=AUTH, trust_env=False).status_code == 200
    assert proxy.requests - before == {Kind.DOWNLOAD: 1, Kind.API: 1, Kind.BLOB_GET: 1}


def test_events_are_forwarded_until_they_are_disconnected(
    server: ServerProcess, proxy: FaultProxy
) -> None:
    url = session_of(proxy)["eventSourceUrl"].partition("?")[0]
    query = {"types": "*", "closeafter": "no", "ping": "30"}
    with httpx.stream("GET", url, params=query, auth=AUTH, trust_env=False, timeout=5) as events:
        lines = events.iter_lines()
        server.control.create_mailbox("New")
        assert any("Mailbox" in line for line in lines)
        proxy.disconnect()
        assert not "".join(lines)


def test_a_fault_is_injected_as_often_as_told(proxy: FaultProxy) -> None:
    proxy.inject(BY_NAME["404"], {Kind.SESSION}, count=2)
    statuses = [get(f"{proxy.url}/session").status_code for _ in range(3)]
    assert (statuses, proxy.injected) == ([404, 404, 200], 2)
    proxy.inject(BY_NAME["404"], CONTENT)
    assert get(f"{proxy.url}/session").status_code == 200
    proxy.inject(BY_NAME["404"])
    assert [get(f"{proxy.url}/session").status_code for _ in range(3)] == [404] * 3
    proxy.clear()
    assert get(f"{proxy.url}/session").status_code == 200


# A client that reads no further than told does not see a longer body.
HARMLESS = {"delay", "throttle", "no length", "longer body"}
# A plain client waits for the end of these, or holds all of it in memory.
ENDLESS = {fault.name for fault in FAULTS if fault.waits} | {"gzip bomb"}


def outcome(url: str) -> bytes | None:
    """Return the body that a plain client gets; None if it gets an error."""
    try:
        response = get(url)
    except httpx.HTTPError:
        return None
    return response.content if response.status_code == 200 else None


@pytest.mark.parametrize(
    "fault",
    [fault for fault in FAULTS if not fault.tls and fault.name not in ENDLESS],
    ids=lambda fault: str(fault.name),
)
def test_each_fault_changes_the_answer(proxy: FaultProxy, fault: Fault) -> None:
    good = outcome(f"{proxy.url}/session")
    proxy.inject(fault, count=1)
    changed = outcome(f"{proxy.url}/session")
    assert proxy.injected == 1
    assert (changed == good) == (fault.name in HARMLESS)
    assert outcome(f"{proxy.url}/session") == good


def test_stalled_connections_stay_open(proxy: FaultProxy) -> None:
    proxy.inject(BY_NAME["silence"], count=1)
    with pytest.raises(httpx.ReadTimeout):
        get(f"{proxy.url}/session", seconds=1)
    assert proxy.injected == 1
    assert get(f"{proxy.url}/session").status_code == 200


def test_a_new_connection_is_refused(proxy: FaultProxy) -> None:
    with httpx.Client(auth=AUTH, trust_env=False) as client:
        assert client.get(f"{proxy.url}/session").status_code == 200
        proxy.inject(BY_NAME["refused"], count=1)
        with pytest.raises(httpx.HTTPError):
            client.get(f"{proxy.url}/session")
        assert client.get(f"{proxy.url}/session").status_code == 200


def test_a_flipped_bit_on_the_wire_ends_tls(server: ServerProcess, certificate: Path) -> None:
    with fault_proxy(server.url, certificate) as proxy:
        assert session_of(proxy, certificate)["apiUrl"].startswith("https://")
        proxy.inject(BY_NAME["garbled on the wire"], count=1)
        with pytest.raises(httpx.HTTPError):
            get(f"{proxy.url}/session", certificate)
        proxy.inject(BY_NAME["stall at connect"], count=1)
        with pytest.raises(httpx.ConnectTimeout):
            get(f"{proxy.url}/session", certificate, seconds=1)
        assert get(f"{proxy.url}/session", certificate).status_code == 200


def test_a_redirect_leads_to_a_host_that_counts_credentials(proxy: FaultProxy) -> None:
    proxy.inject(BY_NAME["redirect elsewhere"], count=1)
    target = get(f"{proxy.url}/session").headers["location"]
    assert target == f"{proxy.elsewhere}session"
    assert get(target).json() == {}
    assert proxy.leaked == {"session": 1}
