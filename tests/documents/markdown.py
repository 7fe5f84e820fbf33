"""The Markdown documents of the repository: their links, anchors and commands."""

from __future__ import annotations

import functools
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)

_FENCE = re.compile(r"^( *)(```+|~~~+)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(
    r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$", re.MULTILINE
)
_HTML_LINK = re.compile(
    r"<(?:a|img)\b[^>]*?\b(?:href|src)\s*=\s*[\"']([^\"']+)[\"']", re.IGNORECASE
)
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)


@functools.cache
def text(document: str) -> str:
    """Return a document, named by its path in the repository."""
    return (ROOT / document).read_text(encoding="utf-8")


def links(markdown: str) -> list[str]:
    """Return the targets of all links and images."""
    prose = _CODE.sub("code", _FENCE.sub("", markdown))
    targets = [inline or reference for inline, reference in _LINK.findall(prose)]
    return targets + _HTML_LINK.findall(prose)


def anchors(markdown: str) -> set[str]:
    """Return the anchors of all headings, as code hosting sites generate them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", markdown)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def blocks(markdown: str, heading: str) -> list[str]:
    """Return the code blocks of the section with this heading of the second level."""
    section = re.split(rf"^## {re.escape(heading)}\n", markdown, flags=re.MULTILINE)[1]
    section = re.split(r"^## ", section, flags=re.MULTILINE)[0]
    return [block for _, _, block in _FENCE.findall(section)]


def commands(markdown: str) -> Iterator[list[str]]:
    """Yield each command in the code blocks as its words.

    A command that runs another one, such as `jmapfs freeze MOUNTPOINT -- rsync`, is one command.
    """
    for _, _, block in _FENCE.findall(markdown):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            try:
                words = list(lexer)
            except ValueError:  # a quotation mark in the output of a command
                continue
            command: list[str] = []
            for word in [*words, ";"]:
                if set(word) <= set("();<>|&"):
                    if command:
                        yield command
                    command = []
                else:
                    command.append(word)
