"""From what a person knows (a URL, a host, a mail address) to the session (RFC 8620 §2.2).

Only here are redirects followed, and each place is first asked without credentials, so that
whoever merely redirects never sees them.
"""

from __future__ import annotations

import re
from urllib.parse import urljoin

import trio

from jmapfs.errors import ConfigError, ProtocolError, UnreachableError
from jmapfs.jmap.connections import LOCATION
from jmapfs.jmap.incoming import Answer, Outgoing
from jmapfs.jmap.origins import host_of, is_downgrade, secure_origin
from jmapfs.jmap.refusals import REDIRECTS
from jmapfs.jmap.service import Resolver, look_up
from jmapfs.jmap.session import SESSION_HEADERS, Session, parse_session
from jmapfs.jmap.transport import Transport

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


async def _ask(url: str, transport: Transport, until: float) -> Answer:
    """Ask one place, with credentials only if it does not redirect without them."""
    anonymous = Outgoing(
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
    asked = Outgoing(
        method="GET", url=url, headers=SESSION_HEADERS, expected=frozenset({200}) | REDIRECTS
    )
    return await transport.fetch(asked, until=until)


def _target(answer: Answer) -> str:
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
