"""What tests of the operations share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jmapfs.index.database import IndexDatabase
from tests.fuse.setting import Setting, fill


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    database = IndexDatabase(tmp_path)
    fill(database)
    with database.reader() as reader, database.reader() as listing_reader:
        yield Setting(database, reader, listing_reader)
