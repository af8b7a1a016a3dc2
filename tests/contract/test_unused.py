"""No class, function or method of the code is unused. Code that only tests use counts as unused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).parents[2]
KINDS = {"class", "function", "method", "property", "unreachable_code"}
"""Kinds of unused code that are findings. ruff finds unused imports, arguments and local variables."""
CALLED_BY_LIBRARIES: Mapping[str, str] = {
    "intercept_service": "gRPC calls interceptors by this name",
    "on_files": "mkdocs calls hooks by this name, and by those below",
    "on_nav": "mkdocs",
    "on_page_markdown": "mkdocs",
    "enlarge": "typer calls `tandem streams enlarge`",
    "on_post_page": "mkdocs",
    "on_post_template": "mkdocs",
    "settings_customise_sources": "pydantic-settings calls it for each settings object",
    "writelines": "nats-py sends what is waiting by it",
}
"""Names that no code of ours mentions, each with its caller."""
DECORATORS = ["@model_validator", "@field_validator"]
"""Decorators that register a function with a library."""


def unused(paths: Iterable[Path], root: Path) -> list[str]:
    """Unused code in these files and folders. Generated servicers name the methods of the protos, so they are read too."""
    scan = Vulture(ignore_names=list(CALLED_BY_LIBRARIES), ignore_decorators=DECORATORS)
    generated = ROOT / "protos" / "gen"
    scan.scavenge([str(path) for path in (*paths, generated)], exclude=["*/migrations/versions/*"])
    return [
        f"{Path(item.filename).relative_to(root)}:{item.first_lineno}: unused {item.typ} {item.name}"
        for item in scan.get_unused_code(min_confidence=60)
        if item.typ in KINDS and not Path(item.filename).is_relative_to(generated)
    ]


def test_no_code_is_unused() -> None:
    assert unused([ROOT / top for top in ("services", "bench", "tools")], ROOT) == []


def test_seeded_unused_code_is_found(tmp_path: Path) -> None:
    file = tmp_path / "seeded.py"
    file.write_text(
        "class Unused:\n    pass\n\nclass Used:\n    def unused(self):\n        pass\n\n"
        "def unused_function():\n    return Used()\n    print()\n"
    )
    assert unused([file], tmp_path) == [
        "seeded.py:1: unused class Unused",
        "seeded.py:5: unused method unused",
        "seeded.py:8: unused function unused_function",
        "seeded.py:10: unused unreachable_code return",
    ]
