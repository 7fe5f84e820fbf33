"""Free ports for servers that restart on the same port."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

TRIES = 5
"""How many ports to try if other processes take them first."""

# Below the ephemeral ports, so that outgoing connections do not take the port of a stopped server.
_PORTS = range(12_000, 32_000)


class PortTakenError(RuntimeError):
    """Another process took a port that was free a moment ago."""


def free_ports(count: int) -> list[int]:
    """Return different free ports of 127.0.0.1."""
    found: list[int] = []
    while len(found) < count:
        # Hypothesis seeds `random`: two workers would choose the same ports.
        port = secrets.choice(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found
