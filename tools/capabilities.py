"""`python -m tools.capabilities [--root DIR] [PLACE ...]`: counts modules, and imports between the rooms of each place.

A place is a folder; its rooms are the files and folders at its top level. An arrow stands for one or more imports from one room to
another; floors are the rooms on the longest chain of arrows; an arrow within a circle of rooms is counted as going back.
Without a place it counts the services, the fold's domain, the benchmarks and the tests' helpers.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = (
    *("services/common", "services/registry", "services/ingest", "services/geofence", "services/geofence/domain"),
    *("services/dispatch", "services/console", "services/cli", "bench", "tools", "tests/support"),
)


@dataclass(frozen=True, slots=True)
class Structure:
    """What one place looks like."""

    place: str
    """The folder, relative to the root."""
    modules: int
    """Python files in it, at any depth."""
    widest: int
    """Python files at the level that has most, `__init__.py` left out."""
    rooms: int
    """Files and folders at its top level."""
    floors: int
    """Rooms on the longest chain of arrows; a circle of rooms counts as one floor."""
    arrows: int
    """Pairs of rooms of which the first imports the second."""
    back: int
    """Arrows that are part of a circle."""


def measure(root: Path, place: str) -> Structure:
    """The structure of a place below `root`."""
    folder = root / place
    files = sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)
    modules = [path for path in files if path.name != "__init__.py"]
    levels: dict[Path, int] = {}
    for path in modules:
        levels[path.parent] = levels.get(path.parent, 0) + 1
    arrows: dict[str, set[str]] = {_limiter(folder, path): set() for path in modules}
    for path in files:
        source = _limiter(folder, path)
        for name in _imports(path):
            target = _imported_room(root, folder, name)
            if target and target != source and target in arrows and source in arrows:
                arrows[source].add(target)
    circles = _circles(arrows)
    return Structure(
        place=place,
        modules=len(modules),
        widest=max(levels.values(), default=0),
        rooms=len(arrows),
        floors=_floors(arrows, circles),
        arrows=sum(map(len, arrows.values())),
        back=sum(circles[source] == circles[target] for source, targets in arrows.items() for target in targets),
    )


def _limiter(folder: Path, path: Path) -> str:
    return path.relative_to(folder).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imported_room(root: Path, folder: Path, name: str) -> str | None:
    """The room of a folder that an imported name lies in; None for another folder's names."""
    prefix = [*folder.relative_to(root).parts]
    parts = name.split(".")
    return parts[len(prefix)] if parts[: len(prefix)] == prefix and len(parts) > len(prefix) else None


def _circles(arrows: Mapping[str, set[str]]) -> dict[str, str]:
    """For each room the name of its circle: the first by name of the rooms that reach it and that it reaches."""
    reached = {limiter: _reachable(arrows, limiter) for limiter in arrows}
    return {
        limiter: min([limiter, *(other for other in reached[limiter] if limiter in reached[other])])
        for limiter in arrows
    }


def _reachable(arrows: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for target in arrows[waiting.pop()]:
            if target not in found:
                found.add(target)
                waiting.append(target)
    return found


def _floors(arrows: Mapping[str, set[str]], circles: Mapping[str, str]) -> int:
    below: dict[str, set[str]] = {circle: set() for circle in circles.values()}
    for source, targets in arrows.items():
        below[circles[source]] |= {circles[target] for target in targets} - {circles[source]}

    @cache
    def height(circle: str) -> int:
        return 1 + max((height(other) for other in below[circle]), default=0)

    return max(map(height, below), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("places", nargs="*", default=PLACES, metavar="PLACE", help="folders, relative to the root")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to read")
    options = parser.parse_args()
    print(f"{'place':26} {'modules':>7} {'widest':>6} {'rooms':>5} {'floors':>6} {'arrows':>6} {'back':>4}")
    for place in options.places:
        if not (options.root / place).is_dir():
            parser.error(f"{place}: no such folder below {options.root} (example: services/dispatch)")
        found = measure(options.root.resolve(), place)
        print(
            f"{found.place:26} {found.modules:7} {found.widest:6} {found.rooms:5} {found.floors:6} {found.arrows:6} "
            f"{found.back:4}"
        )


if __name__ == "__main__":
    main()
