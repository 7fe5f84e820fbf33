"""The memory cache is bounded in bytes, and evicts the blob used least recently."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jmapfs.cache.memory import OVERHEAD_BYTES, MemoryCache


def test_returns_what_was_stored() -> None:
    cache = MemoryCache(100_000)
    assert cache.put("b", b"mail")
    assert cache.get("b") == b"mail"
    assert "b" in cache
    assert cache.get("c") is None


def test_blobs_larger_than_a_quarter_are_refused() -> None:
    cache = MemoryCache(8192)
    assert cache.put("fits", bytes(2048 - OVERHEAD_BYTES))
    assert not cache.put("large", bytes(2049 - OVERHEAD_BYTES))
    assert "large" not in cache
    assert "fits" in cache


def test_a_limit_of_zero_keeps_nothing() -> None:
    cache = MemoryCache(0)
    assert not cache.put("b", b"")
    assert "b" not in cache


def test_evicts_the_least_recently_used() -> None:
    cache = MemoryCache(4 * (1000 + OVERHEAD_BYTES))
    for name in "abcd":
        cache.put(name, bytes(1000))
    cache.get("a")
    cache.put("e", bytes(1000))
    assert [name for name in "abcde" if name in cache] == list("acde")


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5000)), max_size=60))
def test_the_limit_is_never_exceeded(puts: list[tuple[int, int]]) -> None:
    cache = MemoryCache(16_384)
    sizes: dict[int, int] = {}
    for number, size in puts:
        cache.put(str(number), bytes(size))
        sizes[number] = size
        kept = [sizes[one] + OVERHEAD_BYTES for one in sizes if str(one) in cache]
        assert sum(kept) <= 16_384
