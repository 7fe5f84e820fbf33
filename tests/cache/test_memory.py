"""The memory cache is bounded in bytes, and forgets what was used least recently."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jmapfs.cache.memory import OVERHEAD_BYTES, MemoryCache


def test_returns_what_was_put() -> None:
    cache = MemoryCache(100_000)
    assert cache.put("b", b"mail")
    assert cache.get("b") == b"mail"
    assert "b" in cache
    assert cache.get("c") is None


def test_does_not_keep_more_than_a_quarter_in_one_blob() -> None:
    cache = MemoryCache(8192)
    assert cache.put("fits", bytes(2048 - OVERHEAD_BYTES))
    assert not cache.put("large", bytes(2049 - OVERHEAD_BYTES))
    assert "large" not in cache
    assert "fits" in cache


def test_keeps_nothing_with_a_limit_of_zero() -> None:
    cache = MemoryCache(0)
    assert not cache.put("b", b"")
    assert cache.used_bytes == 0


def test_forgets_the_least_recently_used() -> None:
    cache = MemoryCache(4 * (1000 + OVERHEAD_BYTES))
    for name in "abcd":
        cache.put(name, bytes(1000))
    cache.get("a")
    cache.put("e", bytes(1000))
    assert [name for name in "abcde" if name in cache] == list("acde")


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5000)), max_size=60))
def test_is_bounded_whatever_comes(puts: list[tuple[int, int]]) -> None:
    cache = MemoryCache(16_384)
    for name, size in puts:
        cache.put(str(name), bytes(size))
        assert cache.used_bytes <= 16_384
