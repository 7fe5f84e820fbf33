"""Which URLs may be used, and which origin a URL belongs to.

Credentials go to origins (scheme, host and port). This module finds the origin of every URL that a
user or a server names. The module uses the same URL parser as the code that sends the request.
"""

import ipaddress
from urllib.parse import urlsplit, urlunsplit

import httpx

from jmapfs.errors import JmapfsError, printable
from jmapfs.protection import redact

WELL_KNOWN = "/.well-known/jmap"
"""The path of the session on a host that the user names (RFC 8620 §2.2)."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


def secure_origin(url: str, *, naming: str, error: type[JmapfsError]) -> str:
    """Return the origin of `url`, as `https://host:port`, if it may receive credentials.

    In error texts, `naming` stands for the URL. The URL itself is never shown, because it may
    contain a secret. Raises `error` if `url` is not an http(s) URL, contains a user name or
    password, or is `http://` to another machine.
    """
    parsed = _parse(url, naming, error)
    if parsed.userinfo:
        raise error(
            f"{naming} contains a user name or a password; leave it out of the URL, "
            "secrets belong in the configuration"
        )
    if parsed.scheme not in _DEFAULT_PORTS:
        scheme = printable(parsed.scheme, 20)
        raise error(f"{naming} must begin with https://" + (f", not {scheme}:" if scheme else ""))
    if not parsed.host:
        raise error(f"{naming} names no host")
    if parsed.port is not None and not 0 < parsed.port < 65_536:
        raise error(f"{naming} has an impossible port")
    if parsed.scheme == "http" and not is_loopback(parsed.host):
        raise error(
            f"{naming} is http:// to {printable(parsed.host, 80)}, which would send the "
            "credentials and the mail in the clear; use https:// "
            "(http:// is accepted for this machine only: localhost, 127.0.0.0/8, ::1)"
        )
    return origin_of(url)


def origin_of(url: str) -> str:
    """Return the origin `scheme://host:port` of a checked URL. The port is always included."""
    parsed = httpx.URL(url)
    port = parsed.port or _DEFAULT_PORTS.get(parsed.scheme, 0)
    host = parsed.raw_host.decode("ascii")
    return f"{parsed.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def host_of(url: str) -> str:
    """Return the host of a URL, with the port if it is not the default one, for error texts."""
    parsed = httpx.URL(url)
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    return redact(host if parsed.port is None else f"{host}:{parsed.port}")


def with_origin_of(base: str, url: str) -> str:
    """Return `url` with the scheme, host and port of `base`. A relative URL is unchanged."""
    try:
        parts, origin = urlsplit(url), urlsplit(base)
    except ValueError:
        return url
    if not parts.netloc:
        return url
    return urlunsplit(parts._replace(scheme=origin.scheme, netloc=origin.netloc))


def is_loopback(host: str) -> bool:
    """Tell whether `host` is this machine: `localhost`, 127.0.0.0/8 or ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_downgrade(source: str, target: str) -> bool:
    """Tell whether `source` is https:// on another machine and `target` is http://."""
    old, new = httpx.URL(source), httpx.URL(target)
    return old.scheme == "https" and new.scheme == "http" and not is_loopback(old.host)


def _parse(url: str, naming: str, error: type[JmapfsError]) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        # httpx computes these attributes on access. Then it fails if the host is not valid.
        _ = parsed.host, parsed.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        raise error(f"{naming} is not a usable URL") from None
    return parsed
