"""A relay in front of James, in a process of its own: `python -m tests.james.front PORT TARGET`.

James keeps its mail in memory, so it cannot be stopped and started with its mail. Without the relay
its port refuses connections as if it had been stopped. In a process of its own, the relay adds no
open files to the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys

_HOST = "127.0.0.1"
_CHUNK = 65536


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK):
            target.write(data)
            await target.drain()
    # The other end sees the end of the data; the other direction may go on.
    with contextlib.suppress(OSError):
        target.write_eof()


async def _serve(port: int, target: int) -> None:
    async def connect(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with contextlib.closing(to_client), contextlib.suppress(OSError):
            server, to_server = await asyncio.open_connection(_HOST, target)
            with contextlib.closing(to_server):
                for writer in (to_client, to_server):
                    connection = writer.get_extra_info("socket")
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await asyncio.gather(_forward(client, to_server), _forward(server, to_client))

    listener = await asyncio.start_server(connect, _HOST, port)
    async with listener:
        await listener.serve_forever()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
