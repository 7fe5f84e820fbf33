"""What `jmapfs status` shows of a running mount."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import trio

from jmapfs.cache import DiskCache
from jmapfs.fuse import MailOperations
from jmapfs.jmap import Client
from jmapfs.mount.request import MountRequest
from jmapfs.tree import Tree


class StatusSource:
    """Knows whom to ask for each part of the status."""

    def __init__(
        self,
        request: MountRequest,
        client: Client,
        tree: Tree,
        operations: MailOperations,
        disk: DiskCache,
    ) -> None:
        self._request = request
        self._client = client
        self._tree = tree
        self._operations = operations
        self._disk = disk

    async def answer(self, _arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the status as JSON can hold it; README.md describes its members."""
        state = self._tree.state()
        counts = self._tree.counts()
        cache = await trio.to_thread.run_sync(self._disk.statistics)
        traffic = self._client.traffic
        return {
            "mountpoint": str(self._request.mountpoint),
            "pid": os.getpid(),
            "account": state.account_name,
            "account_id": state.account_id,
            "server": state.server,
            "online": True,
            "state": state.email_state,
            "last_sync": datetime.fromtimestamp(state.synced_at, UTC).isoformat(),
            "emails": counts.emails,
            "mailboxes": counts.mailboxes,
            "cache": {"bytes": cache.bytes, "limit": cache.limit, "blobs": cache.blobs},
            "fuse": dict(sorted(self._operations.counts.items())),
            "http": {
                "requests": traffic.requests,
                "blobs": traffic.blobs,
                "bytes": traffic.bytes,
            },
        }
