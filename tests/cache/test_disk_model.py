"""The disk cache against a model of it: any order of operations, with restarts and damage."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.lru import LARGE_OVERHEAD_BYTES, SMALL_OVERHEAD_BYTES, headroom, key_of
from tests.cache.stored import stored

NAMES = st.sampled_from([f"blob/{i}" for i in range(8)])
SIZES = st.sampled_from([0, 1, 700, 3000, 9000, 30_000])
LIMIT = 40_000


def content(name: str, size: int) -> bytes:
    return (name.encode() * (size // len(name) + 1))[:size]


class DiskCacheMachine(RuleBasedStateMachine):
    """The model: an ordered dictionary, least recently used first."""

    @initialize()
    def open(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="jmapfs-model-"))
        self.model: OrderedDict[str, tuple[bytes, int]] = OrderedDict()
        self.pins: Counter[str] = Counter()
        self.unpin: list[tuple[str, Callable[[], object]]] = []
        self.cache = DiskCache(self.directory, LIMIT, reserve_bytes=0)

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.reopen()
            self.cache.close()
            shutil.rmtree(self.directory)

    def used(self) -> int:
        return sum(charge for _, charge in self.model.values())

    def enter(self, name: str, data: bytes, charge: int) -> bool:
        if charge > LIMIT:
            return False
        old = self.model.get(name)
        excess = self.used() - (old[1] if old else 0) + charge - LIMIT
        victims: list[str] = []
        freed = 0
        if excess > 0:
            for candidate, (_, cost) in self.model.items():
                if freed >= excess + headroom(LIMIT):
                    break
                if candidate != name and not self.pins[candidate]:
                    victims.append(candidate)
                    freed += cost
            if freed < excess:
                return False
        for victim in victims:
            del self.model[victim]
        self.model.pop(name, None)
        self.model[name] = (data, charge)
        return True

    @rule(blobs=st.lists(st.tuples(NAMES, SIZES), min_size=1, max_size=4))
    def put(self, blobs: list[tuple[str, int]]) -> None:
        expected = []
        for name, size in blobs:
            data, charge = content(name, size), size + SMALL_OVERHEAD_BYTES
            if self.model.get(name) == (data, charge):
                self.model.move_to_end(name)
                expected.append(True)
            else:
                expected.append(self.enter(name, data, charge))
        given = [(name, content(name, size)) for name, size in blobs]
        assert self.cache.put_many(given) == expected

    @rule(name=NAMES, size=SIZES, commit=st.booleans())
    def write_large(self, name: str, size: int, *, commit: bool) -> None:
        writer = self.cache.begin_large(name, size)
        assert writer is not None
        data = content(name, size)
        with writer:
            writer.write(data)
            if commit:
                assert writer.commit() == self.enter(name, data, size + LARGE_OVERHEAD_BYTES)

    @rule(name=NAMES)
    def get(self, name: str) -> None:
        found = stored(self.cache, name)
        if name in self.model:
            self.model.move_to_end(name)
            assert found == self.model[name][0]
        else:
            assert found is None

    @rule(names=st.lists(NAMES, max_size=6))
    def load_many(self, names: list[str]) -> None:
        expected = {name: self.model[name][0] for name in names if name in self.model}
        for name in expected:
            self.model.move_to_end(name)
        assert list(self.cache.load_many(names).items()) == list(expected.items())

    @rule(names=st.lists(NAMES, max_size=6))
    def missing(self, names: list[str]) -> None:
        expected = [name for name in dict.fromkeys(names) if name not in self.model]
        assert self.cache.missing(names) == expected

    @rule(name=NAMES)
    def hold_open(self, name: str) -> None:
        blob = self.cache.open_large(name)
        if blob is None:
            return
        self.model.move_to_end(name)
        assert blob.pread(100_000, 0) == self.model[name][0]
        self.pins[name] += 1
        self.unpin.append((name, blob.close))

    @rule(name=NAMES)
    def pin(self, name: str) -> None:
        writer = self.cache.begin_large(name)
        assert writer is not None
        self.pins[name] += 1
        self.unpin.append((name, writer.abort))

    @rule()
    def unpin_one(self) -> None:
        if self.unpin:
            name, unpin = self.unpin.pop(0)
            unpin()
            self.pins[name] -= 1

    @rule(name=NAMES)
    def discard(self, name: str) -> None:
        self.cache.discard(name)
        self.model.pop(name, None)

    @rule()
    def reopen(self) -> None:
        while self.unpin:
            self.unpin_one()
        self.cache.close()
        self.cache = DiskCache(self.directory, LIMIT, reserve_bytes=0)

    @rule(name=NAMES, others=st.lists(NAMES, max_size=2))
    def damage(self, name: str, others: list[str]) -> None:
        if name not in self.model or not self.model[name][0]:
            return
        del self.model[name]
        path = self.directory / "large" / key_of(name).hex()
        if path.exists():
            path.write_bytes(b"?" + path.read_bytes()[1:])
        else:
            with closing(sqlite3.connect(self.directory / "blobs.sqlite")) as connection:
                connection.execute(
                    "UPDATE content SET data = cast('?' || substr(data, 2) AS BLOB)"
                    " WHERE number = (SELECT number FROM entry WHERE key = ?)",
                    (key_of(name),),
                )
                connection.commit()
        if others:
            self.load_many([*others, name])
        else:
            self.get(name)

    @invariant()
    def is_what_the_model_says(self) -> None:
        if not hasattr(self, "cache"):
            return
        statistics = self.cache.statistics()
        assert statistics.blobs == len(self.model)
        assert statistics.bytes == self.used() <= LIMIT
        for name, (data, _) in self.model.items():
            assert self.cache.sizes([name]) == {name: len(data)}


DiskCacheMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None
)
TestDiskCache = DiskCacheMachine.TestCase
