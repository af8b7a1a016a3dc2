"""Each database connection is closed in the block that opens it. Python 3.13 reports an unclosed one in some later test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("services", "tools", "tests", "bench")


def called(node: ast.expr) -> str:
    """Dotted name of the function that an expression calls. Empty if it isn't a call."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def unclosed(tree: ast.Module) -> Iterator[int]:
    """Lines with calls of `sqlite3.connect` that aren't wrapped in `closing(...)`."""
    closed = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node) in ("closing", "contextlib.closing")
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) == "sqlite3.connect" and id(node) not in closed:
            yield node.lineno


def test_sqlite_connections_are_closed_at_the_end_of_their_block() -> None:
    # `with sqlite3.connect(...)` alone ends the transaction and leaves the connection open.
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for source in SOURCES
        for path in sorted((ROOT / source).rglob("*.py"))
        if "node_modules" not in path.parts
        for line in unclosed(ast.parse(path.read_text()))
    ]
    assert found == []


def test_sqlalchemy_engines_leave_no_file_open_when_a_caller_is_cancelled() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for source in SOURCES
        for path in sorted((ROOT / source).rglob("*.py"))
        if "node_modules" not in path.parts and "sqlite+aiosqlite" in path.read_text()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and called(node) == "create_async_engine"
        and "connect_args" not in {keyword.arg for keyword in node.keywords}
    ]
    assert found == []
