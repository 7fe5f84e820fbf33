"""Ports for servers that come back on the one they had."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

TRIES = 5
"""How often another port is taken where somebody else was quicker."""

# Below those that the kernel gives to outgoing connections: still free when a server comes back.
_PORTS = range(12_000, 32_000)


class PortTakenError(RuntimeError):
    """Somebody else answers on a port that was free a moment ago."""


def free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 that nobody has now."""
    found: list[int] = []
    while len(found) < count:
        # Hypothesis seeds `random`, and two workers would choose alike.
        port = secrets.choice(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found
