"""Serving in a nursery of the test's own: `async with running_server(server) as url`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from .app import MailServer


@asynccontextmanager
async def running_server(
    server: MailServer, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve HTTP/1.1 and HTTP/2 (prior knowledge) on loopback; give the URL, without a slash.

    Leaving the block drops what is still open. A bug of the server itself is raised then, lest
    its status 500 passes for one the test asked for.
    """
    async with trio.open_nursery() as nursery:
        # The cast: Hypercorn has its own names for the ASGI types.
        binds = await nursery.start(partial(serve, cast("Any", server), _config(host, port)))
        try:
            yield binds[0]
        finally:
            nursery.cancel_scope.cancel()
    if server.bugs:
        raise ExceptionGroup("bugs in the test server", server.bugs)


def _config(host: str, port: int) -> Config:
    config = Config()
    config.bind = [f"{host}:{port}"]
    config.errorlog = logging.getLogger("tests.server.hypercorn")
    config.errorlog.setLevel(logging.WARNING)
    config.accesslog = None
    config.include_server_header = False
    config.graceful_timeout = 0.2
    # Clients decide how long a connection lives; a benchmark is not to reconnect.
    config.keep_alive_timeout = 300
    config.keep_alive_max_requests = 10_000_000
    config.backlog = 1024
    return config
