"""A session of which one field is odd: the account is listed and read, or one line says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    **dict.fromkeys(("apiUrl", "downloadUrl"), set(ODD_VALUES)),
    # The only account is another one.
    "accounts": {"object"},
}
"""The kinds of values with which an account cannot be used."""


@pytest.mark.parametrize("field", FIELDS)
async def test_an_odd_field_of_the_session_has_a_default(tmp_path: Path, field: str) -> None:
    server = MailServer(small_account(6), quirks=Quirks(max_objects_in_get=4))
    email = server.primary.emails["M1"]
    content = server.primary.blobs.read(email.blob_id)
    assert content is not None
    async with running_server(server) as url:
        for kind, value in ODD_VALUES.items():
            server.quirks.odd_values = {"session": {field: value}}
            database = IndexDatabase(tmp_path / kind)
            database.prepare()
            try:
                async with connect(f"{url}/session", CREDENTIALS) as client:
                    with database.writer() as writer:
                        f = Follower(
                            *(server, server.primary, url, tmp_path, client, database, writer)
                        )
                        await f.update(compare=True)
                        f.assert_true()
                        assert not await f.update(compare=True)
                    assert await client.download_blob(email.blob_id) == content
                    blobs = [(email.blob_id, email.size)]
                    batch = await client.download_batch(blobs, deadline=10)
                    assert batch in ({}, {email.blob_id: content})
                    await client.blob_digests([email.blob_id])
            except JmapfsError as error:
                assert kind in UNUSABLE.get(field, ()), error
                assert str(error).isprintable()
            else:
                assert kind not in UNUSABLE.get(field, ()), kind
