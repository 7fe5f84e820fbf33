"""The import graph of a package, from its source: which module imports which."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path


class ImportGraph:
    """The modules of the package, and which import which.

    A name that a package's `__init__` re-exports counts as imported from the module that defines
    it, and the re-export itself does not count as an import.
    """

    def __init__(self, root: Path) -> None:
        files = sorted(root.rglob("*.py"))
        self.lines = sum(len(path.read_text().splitlines()) for path in files)
        self._trees = {_module_name(root, path): ast.parse(path.read_text()) for path in files}
        self.packages = {_module_name(root, path) for path in files if path.stem == "__init__"}
        self.modules = set(self._trees) - self.packages
        self._exports = {
            package: {name: source for source, name in self._imported_names(package)}
            for package in self.packages
        }
        self.importers: dict[str, set[str]] = {module: set() for module in self.modules}
        for importer in self.modules:
            for source, name in self._imported_names(importer):
                imported = self._defining_module(source, name)
                if imported in self.modules and imported != importer:
                    self.importers[imported].add(importer)

    def _imported_names(self, module: str) -> Iterator[tuple[str, str]]:
        package = module if module in self.packages else module.rpartition(".")[0]
        for node in ast.walk(self._trees[module]):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                relative = "." * node.level + (node.module or "")
                source = importlib.util.resolve_name(relative, package)
                yield from ((source, alias.name) for alias in node.names)

    def _defining_module(self, source: str, name: str) -> str:
        if f"{source}.{name}" in self._trees:
            return f"{source}.{name}"
        if name in self._exports.get(source, {}):
            return self._defining_module(self._exports[source][name], name)
        return source


def _module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
