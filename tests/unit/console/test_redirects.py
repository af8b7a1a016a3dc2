"""Redirects of the console stay on its origin for any requested path."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from services.console.pages import guard
from services.console.pages.guard import own_path, see_other

CONSOLE = Path(guard.__file__).parent


@pytest.mark.parametrize(
    "path", ["/", "/search", "/search?text=a//b&from=", "/incidents/i-1#to-a-1", "/a%09b", "/~x;y=1"]
)
def test_a_path_of_this_origin_is_kept(path: str) -> None:
    assert own_path(path) == path
    assert see_other(path).headers["Location"] == path


@pytest.mark.parametrize(
    "elsewhere",
    [
        "",
        "search",
        "//evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "/\r\n/evil.example",
        "\t//evil.example",
        " //evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/x//evil.example",
        "/.//evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/\x00/evil.example",
        "/\x7f",
        "/\u2028/evil.example",
        "/경보",
        "/" + "a" * guard.MAX_PATH_CHARS,
    ],
)
def test_a_path_that_could_leave_the_origin_leads_home(elsewhere: str) -> None:
    assert own_path(elsewhere) == "/"
    assert see_other(elsewhere).headers["Location"] == "/"


def test_the_console_redirects_only_by_its_helper() -> None:
    for source in CONSOLE.rglob("*.py"):
        statements = ast.parse(source.read_text()).body
        if source.name == "guard.py":
            statements = [part for part in statements if getattr(part, "name", "") not in ("see_other", "to_provider")]
        for node in (node for part in statements for node in ast.walk(part)):
            text = getattr(node, "attr", "") or str(getattr(node, "value", ""))
            assert text not in ("HTTPSeeOther", "HTTPFound", "HTTPMovedPermanently", "Location"), source.name
