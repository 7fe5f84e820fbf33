"""From what a person knows (a URL, a host, a mail address) to the session (RFC 8620 §2.2).

Only here are redirects followed, and each place is first asked without credentials, so that
whoever merely redirects never sees them.

Which host serves JMAP for a domain: the SRV lookup of discovery (RFC 8620 §2.2, RFC 6186).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urljoin

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver
import trio
from dns.rdtypes.IN.SRV import SRV

from jmapfs.errors import ConfigError, ProtocolError, UnreachableError
from jmapfs.jmap.http import LOCATION, Transport
from jmapfs.jmap.http_errors import REDIRECTS, printable
from jmapfs.jmap.origins import host_of, is_downgrade, secure_origin
from jmapfs.jmap.response import Request, Response
from jmapfs.jmap.session import SESSION_HEADERS, Session, parse_session

_LOOKUP_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class ServiceTarget:
    """A host and port of an SRV record; host "." says that there is no such service."""

    host: str
    port: int


Resolver: TypeAlias = Callable[[str], Awaitable[list[ServiceTarget]]]
"""Looks up the SRV records of a name: targets in the order to try them, empty if there are none.

Raises UnreachableError when the lookup itself fails.
"""


async def look_up(name: str) -> list[ServiceTarget]:
    """Ask the system's name servers for the SRV records of `name`; the default Resolver."""
    try:
        asked = dns.name.from_text(name)
    except (dns.exception.DNSException, ValueError):
        raise ConfigError(f"{printable(name, 80)} is not a name that can be looked up") from None
    try:
        resolver = dns.asyncresolver.Resolver()
        answer = await resolver.resolve(asked, "SRV", search=False, lifetime=_LOOKUP_TIMEOUT)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except (dns.exception.DNSException, OSError) as error:
        # Guessing the host instead would send the credentials to one the domain may not mean.
        reason = printable(str(error), 160)
        raise UnreachableError(
            f"the SRV records of {printable(name, 80)} cannot be looked up: {reason} "
            "(a session URL needs no lookup)"
        ) from error
    if answer.rrset is None:
        return []
    return [
        ServiceTarget(record.target.to_text(omit_final_dot=True) or ".", record.port)
        for record in answer.rrset.processing_order()
        if isinstance(record, SRV)
    ]


_MOST_REDIRECTS = 5
_WELL_KNOWN = "/.well-known/jmap"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\\\[\]]+)(:\d{1,5})?")

# Without credentials a place may refuse in any way it likes; only "not here" is believed, and
# what Transport takes for busy or broken.
_NOT_HERE = frozenset({404, 410})
_UNAUTHENTICATED = frozenset({200, 400, 401, 402, 403, 405, 406, 407, 451}) | REDIRECTS


async def discover(
    location: str, transport: Transport, *, until: float, resolver: Resolver = look_up
) -> Session:
    """Find and fetch the session that `location` leads to; `until` is a moment of trio's clock.

    A session URL is asked as it is, a host (or URL without a path) at `/.well-known/jmap`, a mail
    address at what the SRV records of its domain name, or else at the domain itself. Afterwards
    the credentials may go to the origins of the session, and no other.

    Raises ConfigError for a location that is unusable or unsafe, before anything is sent;
    ProtocolError for too many or unsafe redirects and for what is no session; otherwise what
    Transport.fetch raises.
    """
    urls = await _candidates(location.strip(), resolver, until)
    for url in urls[:-1]:
        try:
            return await _session_at(url, transport, until)
        except UnreachableError:
            # The next SRV target is there for just this; the error of the last one is told.
            if trio.current_time() >= until:
                raise
    return await _session_at(urls[-1], transport, until)


async def _candidates(location: str, resolver: Resolver, until: float) -> list[str]:
    """Return the URLs to try, in order; there is at least one."""
    if _SCHEME.match(location):
        return [_given_url(location)]
    if "@" in location:
        return await _urls_of_address(location, resolver, until)
    if not _HOST.fullmatch(location):
        raise ConfigError(
            "the location of the account is not usable: give a session URL (https://…), "
            "a host, or a mail address"
        )
    return [_well_known(location, "the host of the account")]


def _given_url(location: str) -> str:
    naming = "the URL of the account"
    secure_origin(location, naming=naming, error=ConfigError)
    authority = re.fullmatch(r"([A-Za-z]+://[^/?#]*)/?", location)
    return f"{authority[1]}{_WELL_KNOWN}" if authority else location


async def _urls_of_address(address: str, resolver: Resolver, until: float) -> list[str]:
    local, _, domain = address.rpartition("@")
    if ":" in local or not _HOST.fullmatch(domain) or ":" in domain or domain.startswith("["):
        raise ConfigError(
            "the location of the account is not usable as a mail address; if it holds a password, "
            "leave that out: secrets belong in the configuration"
        )
    fallback = _well_known(domain, "the domain of the mail address")
    with trio.move_on_at(until) as scope:
        targets = await resolver(f"_jmap._tcp.{domain}")
    if scope.cancelled_caught:
        raise UnreachableError(f"the SRV records of {domain} could not be looked up in time")
    if not targets:
        return [fallback]
    hosts = [target for target in targets if target.host not in {"", "."}]
    if not hosts:
        raise UnreachableError(f"{domain} says in its SRV records that it does not offer JMAP")
    return [
        _well_known(f"{target.host.rstrip('.')}:{target.port}", f"the SRV record of {domain}")
        for target in hosts
    ]


def _well_known(authority: str, naming: str) -> str:
    url = f"https://{authority.removesuffix(':443')}{_WELL_KNOWN}"
    secure_origin(url, naming=naming, error=ConfigError)
    return url


async def _session_at(url: str, transport: Transport, until: float) -> Session:
    for _ in range(_MOST_REDIRECTS + 1):
        answer = await _ask(url, transport, until)
        if answer.status not in REDIRECTS:
            session = parse_session(answer, transport)
            transport.trust(session.origins)
            transport.allow(session.limits.max_concurrent_requests)
            return session
        url = _target(answer)
    raise ProtocolError(f"discovery was redirected more than {_MOST_REDIRECTS} times")


async def _ask(url: str, transport: Transport, until: float) -> Response:
    """Ask one place, with credentials only if it does not redirect without them."""
    anonymous = Request(
        method="GET",
        url=url,
        headers=SESSION_HEADERS,
        authenticated=False,
        expected=_UNAUTHENTICATED | _NOT_HERE,
    )
    answer = await transport.fetch(anonymous, until=until)
    if answer.status in _NOT_HERE:
        raise ProtocolError(f"there is no JMAP at {host_of(url)}: {answer.status} for {_path(url)}")
    if answer.status in REDIRECTS:
        return answer
    transport.trust({secure_origin(url, naming="a URL in discovery", error=ProtocolError)})
    asked = Request(
        method="GET", url=url, headers=SESSION_HEADERS, expected=frozenset({200}) | REDIRECTS
    )
    return await transport.fetch(asked, until=until)


def _target(answer: Response) -> str:
    host = host_of(answer.url)
    location = str(answer.headers.get(LOCATION, ""))
    naming = f"the redirect of {host}"
    if not location:
        raise ProtocolError(f"{naming} does not say where to")
    try:
        target = urljoin(answer.url, location)
    except ValueError:
        raise ProtocolError(f"{naming} is not a usable URL") from None
    secure_origin(target, naming=naming, error=ProtocolError)
    if is_downgrade(answer.url, target):
        raise ProtocolError(f"{naming} leads from https:// to http://, which is not followed")
    return target


def _path(url: str) -> str:
    return url.partition("://")[2].partition("/")[2].partition("?")[0].join(("/", ""))
