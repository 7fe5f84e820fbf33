"""A killed process leaves nothing partial; two processes agree on the totals."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.lru import LARGE_OVERHEAD_BYTES, SMALL_OVERHEAD_BYTES
from tests.cache.stored import stored

MIB = 1024 * 1024
LIMIT = 6 * MIB

# The content of a blob follows from its id, so that any process can check it.
WRITER = """
import random, sys, hashlib
from pathlib import Path
from jmapfs.cache.disk_cache import DiskCache

def content(name):
    number = int(name.split("-")[1])
    size = (number * 7919) % 60_000 + (1_200_000 if number % 17 == 0 else 0)
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]

cache = DiskCache(Path(sys.argv[1]), int(sys.argv[2]), reserve_bytes=0)
source = random.Random(int(sys.argv[3]))
print("ready", flush=True)
rounds = int(sys.argv[4])
while rounds:
    rounds -= 1
    names = [f"b-{source.randrange(400)}" for _ in range(source.randrange(1, 20))]
    cache.put_many([(name, content(name)) for name in names])
    for name in names:
        found = cache.load(f"b-{source.randrange(400)}")
    found = cache.load_many(names)
    assert all(found[name] == content(name) for name in found)
    if source.random() < 0.1:
        cache.discard(names[0])
cache.close()
"""


def content(name: str) -> bytes:
    number = int(name.split("-")[1])
    size = (number * 7919) % 60_000 + (1_200_000 if number % 17 == 0 else 0)
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def start(directory: Path, seed: int, rounds: int = -1) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(LIMIT), str(seed), str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(timeout=30)


def check(directory: Path) -> int:
    """Check every blob and the totals of a cache; return how many blobs there are."""
    cache = DiskCache(directory, LIMIT, reserve_bytes=0)
    cost = blobs = large = 0
    small: dict[str, bytes] = {}
    for number in range(400):
        name = f"b-{number}"
        found = stored(cache, name)
        if found is None:
            continue
        assert found == content(name)
        blobs += 1
        is_large = len(found) > MIB
        large += is_large
        if not is_large:
            small[name] = found
        cost += len(found) + (LARGE_OVERHEAD_BYTES if is_large else SMALL_OVERHEAD_BYTES)
    assert cache.load_many([f"b-{number}" for number in range(400)]) == small
    statistics = cache.statistics()
    assert (statistics.bytes, statistics.blobs) == (cost, blobs)
    assert statistics.bytes <= LIMIT
    assert len(list((directory / "large").iterdir())) == large
    cache.close()
    return blobs


def test_a_process_can_be_killed_at_any_moment(tmp_path: Path) -> None:
    source = random.Random(4711)
    most = 0
    for seed in range(20):
        process = start(tmp_path, seed)
        time.sleep(source.uniform(0.0, 0.15))
        process.kill()
        finish(process)
        most = max(most, check(tmp_path))
    assert most > 25


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    processes = [start(tmp_path, seed, rounds=60) for seed in (1, 2)]
    for process in processes:
        assert finish(process) == 0
    assert check(tmp_path) > 25


def test_a_process_continues_when_another_is_killed(tmp_path: Path) -> None:
    survivor = start(tmp_path, 1, rounds=80)
    for seed in range(3):
        victim = start(tmp_path, 10 + seed)
        time.sleep(0.1)
        victim.kill()
        finish(victim)
    assert finish(survivor) == 0
    assert check(tmp_path) > 25
