"""Read the project's Python sources: syntax trees, calls, attribute docstrings."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "services"


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """The syntax tree of each module under services/, by its path relative to the project."""
    return {
        path.relative_to(ROOT): ast.parse(path.read_text("utf-8"))
        for path in sorted(SERVICES.rglob("*.py"))
        if "migrations" not in path.parts
    }


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """Each call, with the path of its module."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield path, node


def text_of(node: ast.AST | None) -> str | None:
    """The value of a text constant; None for any other expression."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def called(call: ast.Call) -> str:
    """The last name of what is called: `info` of `logger().info(...)`."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def attribute_docstrings(tree: ast.Module, class_name: str) -> dict[str, str]:
    """The docstring below each annotated attribute of a class, in one line."""
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    docs: dict[str, str] = {}
    for node, after in zip(found.body, found.body[1:], strict=False):
        text = text_of(after.value) if isinstance(after, ast.Expr) else None
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and text is not None:
            docs[node.target.id] = " ".join(text.split())
    return docs


def service_of(path: Path) -> str:
    """The service that a module belongs to; `all` for what services share, and `tandem` for the command."""
    name = path.parts[1]
    return {"common": "all", "cli": "tandem"}.get(name, name)
