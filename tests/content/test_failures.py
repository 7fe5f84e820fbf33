"""What is remembered of failed downloads."""

from __future__ import annotations

import pytest

from jmapfs.content.failures import BlobFailures
from jmapfs.errors import (
    BlobMismatchError,
    BlobNotFoundError,
    DeadlineError,
    JmapfsError,
    MethodError,
    RequestError,
    StorageError,
)


@pytest.mark.parametrize(
    "error",
    [
        BlobMismatchError("it has another length"),
        BlobNotFoundError("gone"),
        DeadlineError("late"),
        MethodError("Blob/get", "serverFail", "no"),
        RequestError("no", status=500, kind="k", limit="l"),
        StorageError("the disk is full"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_remembered_error_keeps_nothing_else_in_memory(error: JmapfsError) -> None:
    failures = BlobFailures()
    for _ in range(3):
        try:
            raise error from ValueError("its frame has the content")
        except JmapfsError as raised:
            failures.record("b", raised)
    first, second = failures.get("b"), failures.get("b")
    assert first is not None
    # A reader that raises it adds its own frames.
    assert first is not second
    for found in (first, second):
        assert type(found) is type(error)
        assert (str(found), vars(found)) == (str(error), vars(error))
        assert (found.__traceback__, found.__cause__, found.__context__) == (None, None, None)
