"""The SRV lookup, with a name server on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import pytest
import trio

from jmapfs.errors import ConfigError, UnreachableError
from jmapfs.jmap.discovery import ServiceTarget, look_up

Answer = Callable[[dns.message.Message], None]


@asynccontextmanager
async def name_server(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Make the system's resolver one that gives `answer` to every query."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as listener:
        await listener.bind(("127.0.0.1", 0))

        async def serve() -> None:
            while True:
                data, peer = await listener.recvfrom(4096)
                response = dns.message.make_response(dns.message.from_wire(data))
                response.flags |= dns.flags.RA
                answer(response)
                await listener.sendto(response.to_wire(), peer)

        def resolver() -> dns.asyncresolver.Resolver:
            made = original(configure=False)
            made.nameservers = ["127.0.0.1"]
            made.port = listener.getsockname()[1]
            return made

        original = dns.asyncresolver.Resolver
        monkeypatch.setattr(dns.asyncresolver, "Resolver", resolver)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield
            nursery.cancel_scope.cancel()


async def test_records_are_in_order_of_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(response: dns.message.Message) -> None:
        records = ["20 1 8443 two.example.net.", "10 1 443 one.example.net.", "30 0 0 ."]
        name = response.question[0].name
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "SRV", *records))

    async with name_server(answer, monkeypatch):
        targets = await look_up("_jmap._tcp.example.org")
    assert targets == [
        ServiceTarget("one.example.net", 443),
        ServiceTarget("two.example.net", 8443),
        ServiceTarget(".", 0),
    ]


@pytest.mark.parametrize("code", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
async def test_no_records_are_no_error(
    code: dns.rcode.Rcode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with name_server(lambda response: response.set_rcode(code), monkeypatch):
        assert await look_up("_jmap._tcp.example.org") == []


async def test_failing_name_server_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(response: dns.message.Message) -> None:
        response.set_rcode(dns.rcode.SERVFAIL)

    async with name_server(answer, monkeypatch):
        with pytest.raises(UnreachableError, match=r"SRV records of _jmap._tcp.example.org"):
            await look_up("_jmap._tcp.example.org")


@pytest.mark.parametrize("name", ["_jmap._tcp." + "a" * 64, "_jmap._tcp.a..b"])
async def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        await look_up(name)
