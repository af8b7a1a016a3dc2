"""`python -m tools.capabilities [--root DIR] [FOLDER ...]`: counts modules, and dependencies between the components of each folder.

The components of a folder are the files and folders at its top level. A dependency is one or more imports from one component to
another. Layers are the components on the longest chain of dependencies. Cyclic dependencies are those within a cycle of components.
A dependency runs up if its target stands above its source in the order of components that has the fewest such dependencies.
Without a folder it counts the services, the fold's domain, the benchmarks and the tests' helpers, and then the size of services/:
modules that aren't empty and aren't migrations, their lines, statements, and the shares of docstrings and of imports in the lines.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (
    *("services/common", "services/registry", "services/ingest", "services/geofence", "services/geofence/domain"),
    *("services/dispatch", "services/console", "services/client", "services/court", "services/local", "services/cli"),
    *("bench", "tools", "tests/support"),
)


@dataclass(frozen=True, slots=True)
class Structure:
    """Counts of one folder."""

    folder: str
    """Path of the folder, relative to the root."""
    modules: int
    """Number of Python files at any depth, without `__init__.py`."""
    widest: int
    """Largest number of Python files in one folder, without `__init__.py`."""
    components: int
    """Number of files and folders at the top level."""
    layers: int
    """Number of components on the longest chain of dependencies; a cycle of components counts as one layer."""
    dependencies: int
    """Number of pairs of components of which the first imports the second."""
    cyclic: int
    """Number of dependencies that are part of a cycle."""
    upward: int
    """Number of dependencies that run up."""


@dataclass(frozen=True, slots=True)
class Size:
    """Size of the Python code below a folder, without empty files and migrations."""

    modules: int
    lines: int
    statements: int
    """Number of statements, docstrings not counted."""
    docstring_lines: int
    """Number of lines of docstrings, those of fields included."""
    import_lines: int
    """Number of lines of import statements, each line of a wrapped one counted."""


def size(folder: Path) -> Size:
    """The size of the Python code below a folder."""
    modules = lines = statements = docstrings = imports = 0
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text("utf-8")
        if not text.strip() or {"__pycache__", "migrations"} & {*path.parts}:
            continue
        modules += 1
        lines += len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.stmt):
                continue
            spanned = (node.end_lineno or node.lineno) - node.lineno + 1
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                docstrings += spanned
                continue
            statements += 1
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports += spanned
    return Size(modules, lines, statements, docstring_lines=docstrings, import_lines=imports)


def measure(root: Path, name: str) -> Structure:
    """The structure of a folder below `root`; `name` is its relative path."""
    folder = root / name
    files = sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)
    modules = [path for path in files if path.name != "__init__.py"]
    levels: dict[Path, int] = {}
    for path in modules:
        levels[path.parent] = levels.get(path.parent, 0) + 1
    edges: dict[str, set[str]] = {_component(folder, path): set() for path in modules}
    for path in files:
        source = _component(folder, path)
        for imported in _imports(path):
            target = _imported_component(root, folder, imported)
            if target and target != source and target in edges and source in edges:
                edges[source].add(target)
    cycles = _cycles(edges)
    return Structure(
        folder=name,
        modules=len(modules),
        widest=max(levels.values(), default=0),
        components=len(edges),
        layers=_layers(edges, cycles),
        dependencies=sum(map(len, edges.values())),
        cyclic=sum(cycles[source] == cycles[target] for source, targets in edges.items() for target in targets),
        upward=_upward(edges, _order(edges)),
    )


def _component(folder: Path, path: Path) -> str:
    return path.relative_to(folder).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imported_component(root: Path, folder: Path, name: str) -> str | None:
    """The component of a folder that defines an imported name; None for names outside the folder."""
    prefix = [*folder.relative_to(root).parts]
    parts = name.split(".")
    return parts[len(prefix)] if parts[: len(prefix)] == prefix and len(parts) > len(prefix) else None


def _cycles(edges: Mapping[str, set[str]]) -> dict[str, str]:
    """Name of each component's cycle: the first by name of the components that depend on each other with it."""
    reached = {component: _reachable(edges, component) for component in edges}
    return {
        component: min([component, *(other for other in reached[component] if component in reached[other])])
        for component in edges
    }


def _reachable(edges: Mapping[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for target in edges[waiting.pop()]:
            if target not in reached:
                reached.add(target)
                waiting.append(target)
    return reached


def _layers(edges: Mapping[str, set[str]], cycles: Mapping[str, str]) -> int:
    below: dict[str, set[str]] = {cycle: set() for cycle in cycles.values()}
    for source, targets in edges.items():
        below[cycles[source]] |= {cycles[target] for target in targets} - {cycles[source]}

    @cache
    def height(cycle: str) -> int:
        return 1 + max((height(other) for other in below[cycle]), default=0)

    return max(map(height, below), default=0)


def _order(edges: Mapping[str, set[str]]) -> list[str]:
    """Components from the top down, so that few dependencies run up: each is moved to its best place until no move helps.

    The fewest can't be found in reasonable time for every folder, so another order may have fewer.
    """
    order = sorted(edges, key=lambda component: (len(_reachable(edges, component)), component), reverse=True)
    fewest = _upward(edges, order)
    improved = True
    while improved:
        improved = False
        for component in sorted(edges):
            others = [other for other in order if other != component]
            tried = [[*others[:place], component, *others[place:]] for place in range(len(order))]
            best = min(tried, key=lambda each: _upward(edges, each))
            if (upward := _upward(edges, best)) < fewest:
                order = best
                fewest = upward
                improved = True
    return order


def _upward(edges: Mapping[str, set[str]], order: list[str]) -> int:
    place = {component: number for number, component in enumerate(order)}
    return sum(place[target] < place[source] for source, targets in edges.items() for target in targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", default=FOLDERS, metavar="FOLDER", help="folders, relative to the root")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to read")
    options = parser.parse_args()
    print(
        f"{'folder':26} {'modules':>7} {'widest':>6} {'components':>10} {'layers':>6} {'dependencies':>12} {'cyclic':>6} "
        f"{'upward':>6}"
    )
    for folder in options.folders:
        if not (options.root / folder).is_dir():
            parser.error(f"{folder}: no such folder below {options.root} (example: services/dispatch)")
        found = measure(options.root.resolve(), folder)
        print(
            f"{found.folder:26} {found.modules:7} {found.widest:6} {found.components:10} {found.layers:6} "
            f"{found.dependencies:12} {found.cyclic:6} {found.upward:6}"
        )
    counted = size(options.root.resolve() / "services")
    print(
        f"\nservices: {counted.modules} modules, {counted.lines} lines, {counted.lines / counted.modules:.0f} a module; "
        f"{counted.statements} statements, {counted.lines / counted.statements:.2f} lines each; "
        f"docstrings {counted.docstring_lines / counted.lines:.1%} of the lines, imports {counted.import_lines / counted.lines:.1%}"
    )


if __name__ == "__main__":
    main()
