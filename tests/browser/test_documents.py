"""The documents' site: no link is broken, and it draws, searches and asks no other host, from a server and from its folder."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tests.browser.driver import CHROMIUM, Browser, browser

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900), pytest.mark.usefixtures("packages")]
ROOT = Path(__file__).parents[2]
FROM_FILES = "null"
"""Origin of whatever a page that is opened from a folder loads from there."""


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


class _Page(HTMLParser):
    """Anchors of a page, and the addresses that it links to or loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.addresses: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps the anchor and the addresses of an element."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.addresses.add(value)


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder of the built site."""
    if not CHROMIUM:
        pytest.skip("Chromium isn't installed")
    built = subprocess.run(("make", "docs"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return ROOT / "build" / "docs"


def _pages(built: Path) -> list[Path]:
    """Files of all pages, but for the one that servers give for a missing page."""
    return sorted(path for path in built.rglob("*.html") if path.name != "404.html")


@pytest.fixture
def site(built: Path) -> Iterator[str]:
    """The address of the site on a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=built))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_no_link_of_the_built_site_is_broken(built: Path) -> None:
    pages = {path: _Page(path.read_text("utf-8")) for path in _pages(built)}
    broken, checked = [], 0
    for path, page in pages.items():
        for address in page.addresses:
            link, anchor = urldefrag(address)
            if ":" in link.split("/")[0]:
                continue
            target = (path.parent / unquote(link)).resolve() if link else path
            checked += 1
            if not target.is_file() or (anchor and target in pages and unquote(anchor) not in pages[target].anchors):
                broken.append(f"{path.relative_to(built)}: {address}")
    print(f"\n{len(pages)} pages, {checked} links, {len(broken)} broken")
    assert len(pages) > 100 and checked > 1000 and broken == []


async def _draws_and_searches(drive: Browser, address: str) -> None:
    await drive("open", page="site", url=f"{address}/explanation/overview.html", language="en")
    await drive("wait", page="site", selector="div.mermaid")
    await drive("fill", page="site", selector="input.md-search__input", value="dead letter")
    await drive("wait", page="site", selector=".md-search-result__item")


async def test_the_site_draws_searches_and_asks_no_other_host(site: str) -> None:
    async with browser() as drive:
        await _draws_and_searches(drive, site)
        seen = await drive("seen")
    assert seen["origins"] == [site] and seen["faults"] == []


async def test_each_page_opens_from_the_folder_and_asks_no_host(built: Path) -> None:
    async with browser() as drive:
        await _draws_and_searches(drive, built.as_uri())
        for path in _pages(built):
            await drive("open", page="site", url=path.as_uri(), language="en")
            await drive("wait", page="site", selector="article h1")
            if '<pre class="mermaid">' in path.read_text("utf-8"):
                await drive("wait", page="site", selector="div.mermaid")
        seen = await drive("seen")
    print(f"\norigins: {seen['origins']}")
    assert seen["origins"] == [FROM_FILES] and seen["faults"] == []
