"""The original files, made once for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.disk.original import Files, copy_of, original_files


@pytest.fixture(scope="session")
def original() -> Iterator[Files]:
    """The files; tests copy them and do not change them."""
    with original_files() as files:
        yield files


@pytest.fixture
def files(original: Files) -> Iterator[Files]:
    """A copy of the files for one test."""
    with copy_of(original, "copy") as copy:
        yield copy
