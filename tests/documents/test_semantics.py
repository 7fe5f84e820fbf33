"""The tests that the documents name exist, and the documented exit codes are those of the code.

SEMANTICS.md and SECURITY.md make claims, and each claim names a test.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

from jmapfs.cli.main import INTERRUPTED
from jmapfs.errors import JmapfsError
from tests.documents.markdown import DOCUMENTS, ROOT, text

PROMISES = 9

NAMED_TEST = re.compile(r"`(tests/[^`]+?\.py)::([^`]+)`")


def sections(document: str) -> dict[str, list[str]]:
    """Return the lines of each section of a document, by its heading of the second level."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text(document).splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        found.setdefault(heading, []).append(line)
    return found


def items(lines: list[str]) -> list[str]:
    """Return the list items among the lines, each with the lines that go on with it."""
    found: list[str] = []
    inside = False
    for line in lines:
        if line.startswith("- "):
            found.append(line)
            inside = True
        elif inside and line.startswith("  "):
            found[-1] += f"\n{line}"
        else:
            inside = False
    return found


def promises() -> dict[str, list[str]]:
    """Return the claims of each promise of SEMANTICS.md by its heading."""
    return {
        heading: items(lines)
        for heading, lines in sections("SEMANTICS.md").items()
        if re.match(r"\d+\. ", heading)
    }


@functools.cache
def names_of_tests_in(path: str) -> frozenset[str]:
    """Return the names of the tests in a file, without importing it."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    )


def test_there_are_nine_promises_with_claims() -> None:
    found = promises()
    assert [heading.split(".")[0] for heading in found] == [
        str(number) for number in range(1, PROMISES + 1)
    ]
    assert all(found.values())


def test_every_claim_names_a_test() -> None:
    claims = [claim for found in promises().values() for claim in found]
    assert [claim for claim in claims if not NAMED_TEST.search(claim)] == []


def test_every_claim_about_security_names_a_test() -> None:
    claims = items(sections("SECURITY.md")["What is protected"])
    assert len(claims) > 10
    assert [claim for claim in claims if not NAMED_TEST.search(claim)] == []


def test_no_list_item_is_outside_of_the_promises() -> None:
    lines = [line for found in sections("SEMANTICS.md").values() for line in found]
    assert len(items(lines)) == sum(map(len, promises().values()))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_named_test_is_there(document: str) -> None:
    missing = [
        f"{path}::{name}"
        for path, name in NAMED_TEST.findall(text(document))
        if not (ROOT / path).is_file() or name not in names_of_tests_in(path)
    ]
    assert missing == []


def subclasses(error: type[JmapfsError]) -> Iterator[type[JmapfsError]]:
    for child in error.__subclasses__():
        yield child
        yield from subclasses(child)


def test_the_exit_codes_are_those_of_the_code() -> None:
    described: dict[int, set[str]] = {}
    for line in sections("docs/commands.md")["Exit codes"]:
        row = re.match(r"\| (\d+) \|", line)
        if row:
            code = int(row[1])
            assert code not in described
            described[code] = set(re.findall(r"`(\w+Error)`", line))

    # An error without its own code never ends a command, or ends it with another code.
    expected: dict[int, set[str]] = defaultdict(set, {0: set(), 1: set(), INTERRUPTED: set()})
    for error in subclasses(JmapfsError):
        if error.exit_code != JmapfsError.exit_code and error.__module__ == JmapfsError.__module__:
            expected[error.exit_code].add(error.__name__)
    assert described == expected
