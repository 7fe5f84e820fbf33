"""A compact set is a set."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from jmapfs.snapshot.verify_read import HashSet


@given(st.lists(st.integers(-20, 20) | st.text(max_size=2) | st.binary(max_size=2)))
def test_it_is_a_set(things: list[int | str | bytes]) -> None:
    # Of 0 and 1, and of -1 and -2, the hashes are the same here: they are one thing to it.
    known: set[int] = set()
    hashes = HashSet()
    for thing in things:
        value = hash(thing) or 1
        assert (thing in hashes) == (value in known)
        assert hashes.add(thing) == (value not in known)
        known.add(value)
        assert len(hashes) == len(known)
        assert thing in hashes


def test_it_grows() -> None:
    hashes = HashSet()
    assert all(hashes.add(f"mail/{number}.eml") for number in range(20_000))
    assert all(f"mail/{number}.eml" in hashes for number in range(20_000))
    assert not any(f"mail/{number}.eml" in hashes for number in range(20_000, 40_000))
    assert not hashes.add("mail/7.eml")
    assert len(hashes) == 20_000
    assert sys.getsizeof(hashes._slots) <= 20_000 * 16 * 2


def test_what_clashes_finds_a_place() -> None:
    """Hashes of small numbers are these numbers: all of these begin at one slot."""
    hashes = HashSet()
    things = [number << 40 for number in range(1, 600)]
    assert all(hashes.add(thing) for thing in things)
    assert all(thing in hashes for thing in things)
    assert 600 << 40 not in hashes
