"""ARCHITECTURE.md shows the code as it is, on two pages."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
MODULES = sorted(
    path
    for path in (ROOT / "jmapfs").rglob("*.py")
    if path.name not in {"__init__.py", "__main__.py"}
)


def test_picture_shows_each_module() -> None:
    picture = ARCHITECTURE.split("```")[1]
    words = re.findall(r"\w+", picture)
    assert [path for path in MODULES if path.stem not in words] == []


def test_modules_in_the_text_exist() -> None:
    packages = {path.parent.name for path in MODULES} - {"jmapfs"}
    names = re.findall(rf"`((?:{'|'.join(packages)})\.[a-z_]+)`", ARCHITECTURE)
    existing = {f"{path.parent.name}.{path.stem}" for path in MODULES}
    assert names
    assert set(names) - existing - {"snapshot.json"} == set()


def test_two_modules_have_different_names() -> None:
    assert len({path.stem for path in MODULES}) == len(MODULES)


def test_two_pages() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 160
