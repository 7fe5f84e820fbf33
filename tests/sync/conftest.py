"""What the tests with simulated time have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock


@pytest.fixture
def follower_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Simulated time that stands still while something works: no work is done in threads."""

    async def run_sync(function: Callable[..., Any], *arguments: object, **_: object) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    return MockClock(autojump_threshold=0)
