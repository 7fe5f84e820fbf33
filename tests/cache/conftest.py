"""A disk cache for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jmapfs.cache.disk_cache import DiskCache


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskCache]:
    """A disk cache of 64 MiB in `tmp_path / "cache"`."""
    opened = DiskCache(tmp_path / "cache", 64 * 2**20, reserve_bytes=0)
    yield opened
    opened.close()
