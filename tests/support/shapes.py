"""Checks of the shapes of code in services/: constructor arguments, exhaustive matches, and creation of metrics."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MAX_POSITIONAL = 3
"""Maximum number of positional arguments. ruff's PLR0917 limits them for functions, but doesn't see the constructors that dataclasses
and NamedTuples generate."""
METRIC_TYPES = frozenset(
    f"prometheus_client.{name}" for name in ("Counter", "Gauge", "Histogram", "Summary", "Info", "Enum")
)
_CONNECT = "services.common.messaging.bus.connect"


class Finding(NamedTuple):
    """A violation of a check."""

    path: str
    """File, relative to the root."""
    line: int
    check: str
    """`arguments`, `match` or `metrics`."""
    text: str


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed module."""

    path: str
    """File, relative to the root."""
    name: str
    """Dotted name, such as `services.ingest.intake`."""
    tree: ast.Module

    def full_names(self) -> dict[str, str]:
        """Full names of the names that the module imports, or defines at its top level."""
        names: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.asname or alias.name: alias.name for alias in node.names}
        return names | {node.name: f"{self.name}.{node.name}" for node in self.tree.body if isinstance(node, _NAMED)}


_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
_NAMED = _FUNCTIONS | ast.ClassDef


class Code:
    """The modules of services/ below a root."""

    def __init__(self, root: Path) -> None:
        self.modules = [
            Module(path.relative_to(root).as_posix(), _dotted(path.relative_to(root)), ast.parse(path.read_text()))
            for path in sorted((root / "services").rglob("*.py"))
        ]
        self._classes = {
            f"{module.name}.{node.name}"
            for module in self.modules
            for node in module.tree.body
            if isinstance(node, ast.ClassDef)
        }
        self._creators = {
            f"{module.name}.{node.name}"
            for module in self.modules
            if module.name.endswith(".metrics")
            for node in module.tree.body
            if isinstance(node, _NAMED) and any(_metric_calls(node, module.full_names()))
        }
        """Classes and functions of metrics modules that create metrics."""

    def findings(self) -> Iterator[Finding]:
        """All violations, module by module."""
        for module in self.modules:
            yield from self._arguments(module)
            yield from self._matches(module)
            yield from self._metrics(module)

    def _arguments(self, module: Module) -> Iterator[Finding]:
        names = module.full_names()
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            called = _full_name(node.func, names)
            if called not in self._classes and called != "cls":
                continue
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                yield Finding(
                    module.path, node.lineno, "arguments", f"{ast.unparse(node.func)}(*...) hides their names"
                )
            elif len(node.args) > MAX_POSITIONAL:
                yield Finding(
                    module.path, node.lineno, "arguments", f"{ast.unparse(node.func)} gets {len(node.args)} by position"
                )

    def _matches(self, module: Module) -> Iterator[Finding]:
        names = module.full_names()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Match) and self._is_over_project_types(node, names) and not _is_exhaustive(node):
                yield Finding(
                    module.path, node.lineno, "match", f"match {ast.unparse(node.subject)} lacks assert_never"
                )

    def _is_over_project_types(self, match: ast.Match, names: dict[str, str]) -> bool:
        for case in match.cases:
            for node in ast.walk(case.pattern):
                if isinstance(node, ast.MatchClass) and _full_name(node.cls, names) in self._classes:
                    return True
                if (
                    isinstance(node, ast.MatchValue)
                    and isinstance(node.value, ast.Attribute)
                    and _full_name(node.value.value, names) in self._classes
                ):
                    return True
        return False

    def _metrics(self, module: Module) -> Iterator[Finding]:
        names, is_metrics = module.full_names(), module.name.endswith(".metrics")
        functions = [node for node in ast.walk(module.tree) if isinstance(node, _FUNCTIONS)]
        inside = {call for function in functions for call in ast.walk(function)}
        for call in _metric_calls(module.tree, names):
            if not is_metrics:
                yield Finding(module.path, call.lineno, "metrics", "creates a metric outside of a metrics.py")
            elif call not in inside:
                yield Finding(module.path, call.lineno, "metrics", "creates a metric when it is imported")
        is_main = module.name.endswith(".__main__")
        for call in (node for node in ast.walk(module.tree) if isinstance(node, ast.Call)):
            called = _full_name(call.func, names)
            if called in self._creators and not is_main and not is_metrics:
                yield Finding(module.path, call.lineno, "metrics", "creates metrics, which only __main__ may do")
            # A bus without metrics counts on a registry that no port serves, as a command does.
            if called == _CONNECT and is_main and all(keyword.arg != "metrics" for keyword in call.keywords):
                yield Finding(module.path, call.lineno, "metrics", "connects without the metrics of the process")


def _metric_calls(node: ast.AST, names: dict[str, str]) -> Iterator[ast.Call]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and _full_name(call.func, names) in METRIC_TYPES:
            yield call


def _is_exhaustive(match: ast.Match) -> bool:
    last = match.cases[-1]
    return isinstance(last.pattern, ast.MatchAs) and any(
        isinstance(node, ast.Call) and ast.unparse(node.func).endswith("assert_never")
        for statement in last.body
        for node in ast.walk(statement)
    )


def _full_name(expression: ast.expr, names: dict[str, str]) -> str:
    """Full name of a name or attribute, such as `services.ingest.domain.Position`. Unknown names stay as they are written."""
    match expression:
        case ast.Name(id=name):
            return names.get(name, name)
        case ast.Attribute(value=value, attr=attr):
            return f"{_full_name(value, names)}.{attr}"
        case _:
            return ""


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")
