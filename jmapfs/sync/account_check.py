"""Compares an index with the server: whether the account is the same, and the state current."""

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import trio

from jmapfs.blob_keys import new_epoch
from jmapfs.errors import ConfigError
from jmapfs.index.database import IndexDatabase
from jmapfs.index.rows import AccountState
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.identity import AccountIdentity, merge_origins
from jmapfs.jmap.types import Email

REUSED_IDS: Final = "the server uses the ids of emails again for other emails"


class ReusedIdsError(Exception):
    """An email id stands for another email than before: the server was reset or restored."""


class StateWaiter:
    """Tells when an index that another process writes has the current state of the server.

    "Current" means the state at the construction of this object, or a later state. This process may
    reach the server although the other process cannot: the other process may have an old password,
    or may be a snapshot that has just ended. So this class asks the server for its states
    (RFC 8620 §5.1). The index is current if it has these states, or was brought up to date since.
    """

    def __init__(self, client: Client, database: IndexDatabase) -> None:
        self._client = client
        self._database = database
        # This is compared with `synced_at` of another process, so it cannot be trio's clock.
        self._began = time.time()

    async def reached(self) -> bool:
        """Return whether the index has the current state.

        Raises StorageError if the index cannot be read; other errors are those of the client.
        """
        state = await trio.to_thread.run_sync(self._database.state)
        if state.stale is not None:
            # Another account may have the same states by chance, such as a server that was reset.
            return False
        if not state.complete or state.synced_at >= self._began:
            return state.complete
        # Renaming a mailbox changes only the state of the mailboxes.
        _, mailbox_state = await self._client.mailboxes()
        if state.mailbox_state != mailbox_state:
            return False
        return state.email_state == await self._client.email_state()


def identity_of(state: AccountState) -> AccountIdentity:
    """Return which account an index belongs to."""
    origins = merge_origins(state.origins, [state.server])
    return AccountIdentity(state.location, origins, state.username, state.account_id)


def check_account(database: IndexDatabase, client: Client) -> None:
    """Check that the index belongs to the client's account. A new index fits any account.

    Raises ConfigError if the index belongs to another account, and StorageError if the index cannot
    be read.
    """
    state = database.state()
    if state.account_id:
        _require_owner(state, database, client)


def claim_index(client: Client, database: IndexDatabase, writer: IndexWriter) -> None:
    """Check that the index belongs to the client's account. A new index is assigned to it.

    Stores how the account is reached now. Raises ConfigError if it belongs to another account.
    """
    before = state = writer.state()
    if state.account_id:
        _require_owner(state, database, client)
    else:
        state = replace(
            state,
            account_id=client.account.id,
            account_name=client.account.name,
            epoch="" if client.blob_ids_are_sha1 else new_epoch(),
        )
    identity = client.identity
    has_moved = state.server not in {"", client.session.api_url}
    state = replace(
        state,
        location=identity.location,
        # Snapshots of an earlier version name only the origin that the API had then.
        origins=merge_origins(identity.origins, identity_of(state).origins),
        server=client.session.api_url,
        moved_at=time.time() if has_moved else state.moved_at,
        username=identity.username or state.username,
        blob_ids_are_sha1=client.blob_ids_are_sha1,
    )
    if state != before:
        with writer.transaction():
            writer.set_state(state)


def require_own_ids(client: Client, writer: IndexWriter, emails: Iterable[Email]) -> None:
    """Raise ReusedIdsError if an id stands for another email in the index.

    Blob ids with a SHA-1 prove the content, so a reused email id does no harm then.
    """
    if not client.blob_ids_are_sha1 and writer.reused_ids(emails):
        raise ReusedIdsError


def _require_owner(state: AccountState, database: IndexDatabase, client: Client) -> None:
    """Raise ConfigError if a state belongs to another account."""
    ours, index = client.identity, identity_of(state)
    if not index.location:
        # An earlier version made this index. Its directory is named after the location, so the
        # location is the same.
        index = replace(index, location=ours.location)
    if not index.is_same_account(ours):
        raise ConfigError(
            f"the index in {database.path.parent} belongs to {index}, not to {ours}: choose another"
            " --cache-dir, or remove that directory if the account has really moved"
        )
