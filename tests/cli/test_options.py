"""The text form of sizes."""

from __future__ import annotations

import click
import pytest

from jmapfs.cli.options import SizeParameter, format_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("500M", 500 << 20),
        ("10G", 10 << 30),
        ("10g", 10 << 30),
        ("1.5K", 1536),
        (" 2 TiB ", 2 << 40),
        ("7kB", 7 << 10),
        ("12B", 12),
    ],
)
def test_size_parameter(text: str, size: int) -> None:
    assert SizeParameter().convert(text, None, None) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1.G", ".5G", "1e9", "10X", "10 G B", "0x10", "1,5G", "inf", "nan"]
)
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="500M"):
        SizeParameter().convert(text, None, None)


def test_numbers_are_not_converted() -> None:
    assert SizeParameter().convert(7, None, None) == 7


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 10, "1.5 MiB"),
        (10 << 30, "10.0 GiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text
