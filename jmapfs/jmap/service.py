"""Which host serves JMAP for a domain: the SRV lookup of discovery (RFC 8620 §2.2, RFC 6186)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

from jmapfs.errors import ConfigError, UnreachableError
from jmapfs.jmap.wording import printable

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
