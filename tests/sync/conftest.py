"""What the tests with simulated time have in common."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_suspension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the follower not look every ten seconds whether the machine was suspended."""
    monkeypatch.setattr("jmapfs.sync.schedule._SUSPENSION_CHECK", 1e6)
