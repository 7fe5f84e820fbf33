"""The replies of daemons of another version can be read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from jmapfs.cli.status_command import _account_lines
from jmapfs.control.messages import (
    AccountStatus,
    CacheStatus,
    ContentStatus,
    HttpStatus,
    ReadaheadStatus,
)
from jmapfs.tree.status_file import BadEmailStatus, ShortfallStatus

STATUS = AccountStatus(
    account="alice",
    account_id="A1",
    server="https://mail.example.org/api",
    online=True,
    since="2024-03-01T00:00:00Z",
    error=None,
    leads=True,
    push=False,
    state="S1",
    last_sync="2024-03-01T00:00:00Z",
    last_check=None,
    emails=3,
    mailboxes=1,
    cache=CacheStatus(bytes=0, limit=0, blobs=0, hits=0),
    ahead=ReadaheadStatus(downloaded=0, recalled=0),
    http=HttpStatus(requests=0, blobs=0, bytes=0),
    content=ContentStatus(confirmed=1, refused=2),
)


def decoded(document: dict[str, Any]) -> AccountStatus:
    return msgspec.json.decode(msgspec.json.encode(document), type=AccountStatus)


@pytest.mark.parametrize(
    ("member", "default"),
    [
        ("content", ContentStatus()),
        ("stale", None),
        ("bad", ()),
        ("bad_count", 0),
        ("shortfall", None),
    ],
)
def test_the_status_of_an_older_daemon_is_read(member: str, default: object) -> None:
    document = msgspec.to_builtins(STATUS)
    del document[member]
    assert decoded(document) == msgspec.structs.replace(STATUS, **{member: default})


def test_the_table_shows_what_is_lacking_only_if_there_is_something() -> None:
    assert {"bad", "shortfall"}.isdisjoint(dict(_account_lines(STATUS)))
    time = "2026-11-27T00:00:00+00:00"
    bad = tuple(BadEmailStatus(f"M{number}", f"why {number}", time) for number in range(100))
    lacking = msgspec.structs.replace(
        STATUS, bad=bad, bad_count=120, shortfall=ShortfallStatus(time, 3, 5)
    )
    lines = _account_lines(lacking)
    assert [value for name, value in lines if name == "bad"] == [
        f"M{number}: why {number}" for number in range(10)
    ]
    assert "and 110 more mails" in dict(lines)[""]
    assert "counts 5 mails, but only 3 can be listed" in dict(lines)["shortfall"]


def test_members_of_a_newer_daemon_are_ignored() -> None:
    assert decoded(msgspec.to_builtins(STATUS) | {"unknown": {"a": 1}}) == STATUS


def test_the_table_shows_doubtful_content_only_if_there_was_some() -> None:
    lines = dict(_account_lines(STATUS))
    assert "1 confirmed" in lines["content"]
    assert "2 downloads refused" in lines["content"]
    quiet = msgspec.structs.replace(STATUS, content=ContentStatus())
    assert "content" not in dict(_account_lines(quiet))
