"""Discovery finds the session for a URL, a host or a mail address (RFC 8620 §2.2).

No other module follows redirects. A server that only redirects must not receive the credentials, so
each URL is first requested without credentials.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias
from urllib.parse import urljoin

from jmapfs.deadline import Deadline
from jmapfs.errors import ConfigError, ProtocolError, UnreachableError, printable
from jmapfs.jmap.http import Transport
from jmapfs.jmap.http_errors import REDIRECTS, redirect_text
from jmapfs.jmap.identity import normalize_location
from jmapfs.jmap.origins import (
    WELL_KNOWN,
    host_of,
    is_downgrade,
    origin_of,
    secure_origin,
    with_origin_of,
)
from jmapfs.jmap.response import HttpRequest, HttpResponse, RequestKind
from jmapfs.jmap.session import SESSION_HEADERS, Session, read_session

_LOOKUP_TIMEOUT = 10.0
_MAX_REDIRECTS = 5
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\\\[\]]+)(:\d{1,5})?")

_NOT_FOUND = frozenset({404, 410})
# James 3.8 speaks an older draft of JMAP by default, and has no session in it. For the JMAP of
# RFC 8621, every request needs this parameter of the media type in its Accept field.
_VERSION_PARAMETER = "; jmapVersion=rfc-8621"
# The statuses that a request without credentials may have: the redirect is followed, or the request
# is sent again with credentials. Other statuses are errors, such as "not found" or a busy server.
_UNAUTHENTICATED = frozenset({200, 400, 401, 402, 403, 405, 406, 407, 451}) | REDIRECTS


@dataclass(frozen=True, slots=True)
class ServiceTarget:
    """A host and port of an SRV record; host "." means that there is no such service."""

    host: str
    port: int


Resolver: TypeAlias = Callable[[str], Awaitable[list[ServiceTarget]]]
"""Looks up the SRV records of a name: targets in the order to try them, empty if there are none.

Raises UnreachableError when the lookup itself fails.
"""


async def look_up(name: str) -> list[ServiceTarget]:
    """Ask the system's name servers for the SRV records of `name`; the default Resolver."""
    # Only a mail address needs dnspython, whose import takes as long as that of httpx.
    import dns.asyncresolver  # noqa: PLC0415
    import dns.exception  # noqa: PLC0415
    import dns.name  # noqa: PLC0415
    import dns.resolver  # noqa: PLC0415
    from dns.rdtypes.IN.SRV import SRV  # noqa: PLC0415

    try:
        dns_name = dns.name.from_text(name)
    except (dns.exception.DNSException, ValueError):
        raise ConfigError(f"{printable(name, 80)} is not a valid DNS name") from None
    try:
        resolver = dns.asyncresolver.Resolver()
        answer = await resolver.resolve(dns_name, "SRV", search=False, lifetime=_LOOKUP_TIMEOUT)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except (dns.exception.DNSException, OSError) as error:
        # Do not guess the host: it may not belong to the domain, but would get the credentials.
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


async def discover(
    location: str,
    transport: Transport,
    *,
    deadline: Deadline,
    resolver: Resolver = look_up,
    rewrite_origin: bool = False,
) -> Session:
    """Find and fetch the session that `location` leads to, before the deadline.

    The time that the server asks to wait does not count. With `rewrite_origin`, redirects and the
    URLs of the session keep the origin of the first URL.

    A session URL is used as it is. For a host, or a URL without a path, `/.well-known/jmap` is
    requested. A mail address stands for the hosts in the SRV records of its domain or, if there are
    none, for the domain itself. Afterwards credentials go only to the origins of the session.

    Raises:
        ConfigError: the location is unusable or unsafe; nothing was sent.
        ProtocolError: too many or unsafe redirects, or the response is not a session.
        JmapfsError: any error of Transport.fetch.
    """
    urls = await _candidates(location.strip(), resolver, deadline)
    session_at = partial(
        _session_at,
        transport=transport,
        deadline=deadline,
        location=normalize_location(location),
        rewrite_origin=rewrite_origin,
    )
    for url in urls[:-1]:
        try:
            return await session_at(url)
        except UnreachableError:
            # Try the next SRV target. Only the error of the last target is raised.
            if deadline.passed:
                raise
    return await session_at(urls[-1])


async def _candidates(location: str, resolver: Resolver, deadline: Deadline) -> list[str]:
    """Return the URLs to try, in this order, at least one."""
    if _SCHEME.match(location):
        secure_origin(location, naming="the URL of the account", error=ConfigError)
        authority = re.fullmatch(r"([A-Za-z]+://[^/?#]*)/?", location)
        return [f"{authority[1]}{WELL_KNOWN}" if authority else location]
    if "@" in location:
        return await _urls_of_address(location, resolver, deadline)
    if not _HOST.fullmatch(location):
        raise ConfigError(
            "the location of the account is not usable: give a session URL (https://…), "
            "a host, or a mail address"
        )
    return [_well_known(location, "the host of the account")]


async def _urls_of_address(address: str, resolver: Resolver, deadline: Deadline) -> list[str]:
    local, _, domain = address.rpartition("@")
    if ":" in local or not _HOST.fullmatch(domain) or ":" in domain or domain.startswith("["):
        raise ConfigError(
            "the location of the account is not usable as a mail address; if it contains a "
            "password, leave that out: secrets belong in the configuration"
        )
    fallback = _well_known(domain, "the domain of the mail address")
    with deadline.limit() as scope:
        targets = await resolver(f"_jmap._tcp.{domain}")
    if scope.cancelled_caught:
        raise UnreachableError(f"the SRV records of {domain} could not be looked up in time")
    if not targets:
        return [fallback]
    hosts = [target for target in targets if target.host not in {"", "."}]
    if not hosts:
        raise UnreachableError(f"the SRV records of {domain} say that it does not offer JMAP")
    return [
        _well_known(f"{target.host.rstrip('.')}:{target.port}", f"the SRV record of {domain}")
        for target in hosts
    ]


def _well_known(authority: str, naming: str) -> str:
    url = f"https://{authority.removesuffix(':443')}{WELL_KNOWN}"
    secure_origin(url, naming=naming, error=ConfigError)
    return url


async def _session_at(
    url: str, transport: Transport, deadline: Deadline, *, location: str, rewrite_origin: bool
) -> Session:
    target = ""
    for _ in range(_MAX_REDIRECTS + 1):
        response = await _get_session(url, transport, deadline)
        if response.status not in REDIRECTS:
            session = await read_session(
                response, transport, location=location, rewrite_origin=rewrite_origin
            )
            transport.set_limits(session.origins, session.limits.max_concurrent_requests)
            return session
        start = origin_of(url)
        target = redirect_text(response.headers)
        url = _redirect_target(response, target, rewrite_origin=rewrite_origin)
        if origin_of(url) != start:
            transport.explain({origin_of(url): f"a redirect of {host_of(response.url)}"})
    raise ProtocolError(
        f"discovery was redirected more than {_MAX_REDIRECTS} times, the last time to {target}"
    )


async def _get_session(url: str, transport: Transport, deadline: Deadline) -> HttpResponse:
    """Request the session; send the credentials only to a URL that does not redirect."""
    anonymous = HttpRequest(
        method="GET",
        url=url,
        kind=RequestKind.SESSION,
        headers=SESSION_HEADERS,
        authenticated=False,
        expected=_UNAUTHENTICATED | _NOT_FOUND,
    )
    response = await transport.fetch(anonymous, deadline=deadline, patient=True)
    if response.status == 404 and not transport.accept_parameter:
        transport.accept_parameter = _VERSION_PARAMETER
        response = await transport.fetch(anonymous, deadline=deadline, patient=True)
    if response.status in _NOT_FOUND:
        transport.accept_parameter = ""
        path = "/" + url.partition("://")[2].partition("/")[2].partition("?")[0]
        raise ProtocolError(f"there is no JMAP at {host_of(url)}: {response.status} for {path}")
    if response.status in REDIRECTS:
        return response
    transport.trust({secure_origin(url, naming="a URL in discovery", error=ProtocolError)})
    authenticated = HttpRequest(
        method="GET",
        url=url,
        kind=RequestKind.SESSION,
        headers=SESSION_HEADERS,
        expected=frozenset({200}) | REDIRECTS,
    )
    return await transport.fetch(authenticated, deadline=deadline, patient=True)


def _redirect_target(response: HttpResponse, text: str, *, rewrite_origin: bool) -> str:
    """Return the target of a redirect. `text` is the target for error texts."""
    location: str = response.headers.get("location", "")
    if not location:
        raise ProtocolError(f"the redirect of {host_of(response.url)} names no target")
    naming = f"the redirect of {host_of(response.url)} to {text}"
    try:
        if rewrite_origin:
            location = with_origin_of(response.url, location)
        target = urljoin(response.url, location)
    except ValueError:
        raise ProtocolError(f"{naming} is not a usable URL") from None
    secure_origin(target, naming=naming, error=ProtocolError)
    if is_downgrade(response.url, target):
        raise ProtocolError(f"{naming} leads from https:// to http://, which is not allowed")
    return target
