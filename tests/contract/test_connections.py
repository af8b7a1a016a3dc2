"""Each connection to a database is closed where it is opened: Python 3.13 reports one that isn't, in whichever test comes next."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("services", "tools", "tests", "bench")


def called(node: ast.expr) -> str:
    """The dotted name of what a call calls, or nothing."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def unclosed(tree: ast.Module) -> Iterator[int]:
    """The lines of the calls of `sqlite3.connect` that no `closing(...)` is around."""
    closed = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node) in ("closing", "contextlib.closing")
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) == "sqlite3.connect" and id(node) not in closed:
            yield node.lineno


def test_a_connection_to_a_file_is_closed_at_the_end_of_its_block() -> None:
    # `with sqlite3.connect(...)` alone ends the transaction and leaves the connection open.
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for source in SOURCES
        for path in sorted((ROOT / source).rglob("*.py"))
        if "node_modules" not in path.parts
        for line in unclosed(ast.parse(path.read_text()))
    ]
    assert found == []


def test_sqlalchemy_opens_files_so_that_a_cancelled_caller_leaves_none_open() -> None:
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
