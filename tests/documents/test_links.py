"""Links in the documents work, also where README.md is shown without the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents.markdown import DOCUMENTS, ROOT, anchors, links, text

README_LINES = 200

_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_NAMED_DOCUMENT = re.compile(r"`([\w/.-]+\.md)`")


def _broken(document: str, markdown: str) -> list[str]:
    """Return the relative links that name no file of the repository, or no heading in it."""
    broken = []
    for link in links(markdown):
        if _ABSOLUTE.match(link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        inside = target.resolve().is_relative_to(ROOT)
        if not inside or not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    return broken


def _anchors(path: Path) -> set[str]:
    return anchors(path.read_text(encoding="utf-8")) if path.suffix == ".md" else set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_and_anchors_resolve(document: str) -> None:
    assert _broken(document, text(document)) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_that_are_named_exist(document: str) -> None:
    places = (ROOT, (ROOT / document).parent)
    named = _NAMED_DOCUMENT.findall(text(document))
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


def test_links_in_the_documents_are_found() -> None:
    assert any("#" in link for link in links(text("docs/commands.md")))
    assert "../tests/bench/figures.svg" in links(text("docs/benchmarks.md"))


def test_readme_has_absolute_links_only() -> None:
    assert [link for link in links(text("README.md")) if not link.startswith("https://")] == []


def test_readme_names_every_document() -> None:
    named = set(_NAMED_DOCUMENT.findall(text("README.md")))
    assert set(DOCUMENTS) - named == {"README.md"}


def test_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) <= README_LINES


@pytest.mark.parametrize(
    "markdown",
    [
        "see [the commands](docs/nothing.md)",
        "![a plot](docs/nothing.svg)",
        "see [the commands](docs/commands.md#no-such-heading)",
        "see [above](#no-such-heading)",
        "see [the commands][1]\n\n[1]: docs/nothing.md",
        '<img src="docs/nothing.svg">',
        "a file [outside](../../etc/passwd)",
        "[`code`](docs/nothing.md)",
    ],
)
def test_broken_links_are_found(markdown: str) -> None:
    assert len(_broken("README.md", markdown)) == 1


def test_code_has_no_links() -> None:
    assert links("`[a](b)` and\n\n```\n[a](b)\n```\n") == []


def test_anchors_are_those_of_the_headings() -> None:
    markdown = "# `jmapfs verify DEST[/DATE]`\n\n## Two words\n\n## Two words\n\n```\n# none\n```\n"
    assert anchors(markdown) == {"jmapfs-verify-destdate", "two-words", "two-words-1"}
