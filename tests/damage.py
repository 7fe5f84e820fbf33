"""Damage to files, for tests: the same bits are flipped in each run."""

from __future__ import annotations

import random
from pathlib import Path


def flip_bits(path: Path, chance: random.Random, *, count: int = 3) -> None:
    """Flip random bits of a file."""
    data = bytearray(path.read_bytes())
    for bit in chance.sample(range(8 * len(data)), count):
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
