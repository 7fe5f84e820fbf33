"""Snapshots of a server that sends content that is not the mail: no wrong byte gets in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pytest

from jmapfs.errors import IncompleteError
from jmapfs.snapshot.create import FailedDownloadsError
from jmapfs.snapshot.missing import read_missing
from tests.mails import text_mail
from tests.server.lies import LieRoute
from tests.snapshot.commands import dates
from tests.snapshot.served import ServedAccount

LIES: Final = ("html", "empty", "short", "long", "other-mail")


@dataclass(frozen=True)
class Cell:
    """Where a server lies, and whether it has another route on which it does not."""

    routes: tuple[LieRoute, ...]
    blob_get: bool
    honest_route: bool


CELLS: Final = {
    "download, no Blob/get": Cell(("download",), blob_get=False, honest_route=False),
    "download": Cell(("download",), blob_get=True, honest_route=True),
    "Blob/get": Cell(("blob-get",), blob_get=True, honest_route=True),
    "both": Cell(("download", "blob-get"), blob_get=True, honest_route=False),
}


@pytest.mark.parametrize("sha1", [False, True], ids=["plain", "SHA-1"])
@pytest.mark.parametrize("count", [1, -1], ids=["once", "always"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("which", ["small", "large"])
async def test_no_wrong_byte_gets_into_a_snapshot(
    served: ServedAccount, which: str, lie: Any, cell: str, count: int, *, sha1: bool
) -> None:
    server, account = served.server, served.server.primary
    quirks = server.quirks
    quirks.sha1_blob_ids = sha1
    server.apply_blob_ids()
    quirks.blob_get = CELLS[cell].blob_get
    bad = ["M3", "M7"] if which == "small" else ["Mlarge"]
    quirks.lie_blob_ids = [account.emails[one].blob_id for one in bad]
    quirks.lie_routes = list(CELLS[cell].routes)
    quirks.lie_count = count
    quirks.lie = lie
    if count == 1 or CELLS[cell].honest_route:
        summary = await served.snapshot()
        assert summary.missing == 0
        return
    with pytest.raises(FailedDownloadsError) as raised:
        await served.snapshot()
    assert raised.value.exit_code == IncompleteError.exit_code
    assert dates(served.dest) == []
    assert {mail.id for mail in read_missing(raised.value.missing.path)} == set(bad)
    assert (await served.snapshot(skip_bad=True)).missing == len(bad)
    quirks.lie = None
    summary = await served.snapshot()
    assert (summary.missing, summary.fetched) == (0, len(bad))


@pytest.mark.parametrize("lie", LIES)
async def test_the_reason_is_named(served: ServedAccount, lie: Any) -> None:
    quirks = served.server.quirks
    quirks.lie, quirks.blob_get = lie, False
    quirks.lie_blob_ids = [served.server.primary.emails["M3"].blob_id]
    with pytest.raises(FailedDownloadsError) as raised:
        await served.snapshot()
    [mail] = raised.value.missing.first
    size = len(text_mail(3, padding=3))
    reason = {
        "html": "web page",
        "empty": "empty",
        "short": f"{size - 40:,} bytes",
        "long": f"{size + 40:,} bytes",
        "other-mail": "bytes",
    }[lie]
    assert reason in mail.reason
    assert mail.files[0].startswith("Inbox/20240301-000300_Bob_mail-3_")
