"""Hooks of the documents' site: scripts from npm in the site itself, and links to files of the project as plain paths."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File  # type: ignore[import-not-found]  # of .venv-docs

_FOLDER = Path(__file__).parent
_ROOT = _FOLDER.parents[1]
_SHIM_URL = "https://unpkg.com/iframe-worker/shim"
_SHIM = "assets/iframe-worker.js"
_SCRIPTS = {
    "assets/mermaid.min.js": _FOLDER / "node_modules" / "mermaid" / "dist" / "mermaid.min.js",
    _SHIM: _FOLDER / "node_modules" / "iframe-worker" / "shim" / "index.js",
}
"""Scripts that the theme would otherwise load from another host: diagrams, and the search of a site that is opened as files."""
_ORDER = ("Tutorials", "How to", "Reference", "Explanation", "Decisions", "Benchmarks")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the scripts to the site."""
    for name, path in _SCRIPTS.items():
        files.append(File.generated(config, name, content=path.read_bytes()))
    return files


def on_nav(nav: Any, **_: Any) -> Any:
    """Puts the folders in the order in which a reader needs them, and names the decisions by what they are."""
    for item in nav.items:
        if item.title == "Adr":
            item.title = "Decisions"
    nav.items.sort(key=lambda item: _ORDER.index(item.title) if item.title in _ORDER else -1)
    return nav


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Replaces links to files outside the documents, such as protos, by their paths in the project."""
    folder = Path(config["docs_dir"]) / Path(page.file.src_uri).parent

    def plain(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        path = Path(os.path.normpath(folder / target))
        if "://" in target or path.is_relative_to(config["docs_dir"]):
            return link[0]
        return f"{text} (`{path.relative_to(_ROOT)}`)"

    return _LINK.sub(plain, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Points a page to the enclosed script of the search."""
    return output.replace(_SHIM_URL, "../" * page.url.count("/") + _SHIM)


def on_post_template(output_content: str, **_: Any) -> str:
    """Points the page for missing pages to the enclosed script of the search."""
    return output_content.replace(_SHIM_URL, _SHIM)
