"""A session of which one field is odd: the account is listed and read, or one line says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from jmapfs.deadline import Deadline
from jmapfs.errors import JmapfsError
from jmapfs.index.database import IndexDatabase
from jmapfs.jmap.client import connect
from tests.server import MailServer, Quirks, running_server
from tests.server.quirks import BLOB, ODD_VALUES
from tests.server.session import CORE, MAIL
from tests.sync.followed_account import CREDENTIALS, Follower, small_account

FIELDS = (
    *("apiUrl", "downloadUrl", "uploadUrl", "eventSourceUrl", "username", "state"),
    *("capabilities", f"capabilities/{CORE}", f"capabilities/{BLOB}"),
    *("accounts", "accounts/Aprimary", "primaryAccounts", f"primaryAccounts/{MAIL}"),
)
"""All fields, and parts of some; tests/jmap/test_session.py has the limits and the account."""

UNUSABLE = {
    "apiUrl": set(ODD_VALUES),
    "downloadUrl": set(ODD_VALUES),
    # The only account is another one.
    "accounts": {"object"},
}
"""The kinds of values with which an account cannot be used."""


async def use(server: MailServer, url: str, directory: Path) -> None:
    """List the account twice, and fetch a mail in all ways."""
    email = server.primary.emails["M1"]
    content = server.primary.blobs.read(email.blob_id)
    assert content is not None
    database = IndexDatabase(directory)
    database.prepare()
    async with connect(f"{url}/session", CREDENTIALS) as client:
        with database.writer() as writer:
            f = Follower(server, server.primary, url, directory, client, database, writer)
            await f.update(compare=True)
            f.assert_true()
            assert not await f.update(compare=True)
        assert await client.download_blob(email.blob_id) == content
        batch = await client.download_batch([(email.blob_id, email.size)], deadline=Deadline(10))
        assert batch in ({}, {email.blob_id: content})
        await client.blob_digests([email.blob_id])


@pytest.mark.parametrize("field", FIELDS)
async def test_an_odd_field_of_the_session_has_a_default(tmp_path: Path, field: str) -> None:
    server = MailServer(small_account(6), quirks=Quirks(max_objects_in_get=4))
    async with running_server(server) as url:
        for kind, value in ODD_VALUES.items():
            server.quirks.odd_values = {"session": {field: value}}
            if kind in UNUSABLE.get(field, ()):
                with pytest.raises(JmapfsError) as refused:
                    await use(server, url, tmp_path / kind)
                assert str(refused.value).isprintable()
            else:
                await use(server, url, tmp_path / kind)
