"""The documents' site: it is built without a broken link, draws its diagrams, finds a word, and asks no other host for anything."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.browser.driver import CHROMIUM, browser

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the built site."""
    if not CHROMIUM:
        pytest.skip("Chromium isn't installed")
    built = subprocess.run(("make", "docs"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=ROOT / "build" / "docs"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


async def test_the_site_draws_searches_and_asks_no_other_host(site: str) -> None:
    async with browser() as drive:
        await drive("open", page="site", url=f"{site}/explanation/overview.html", language="en")
        await drive("wait", page="site", selector="div.mermaid")
        await drive("fill", page="site", selector="input.md-search__input", value="dead letter")
        await drive("wait", page="site", selector=".md-search-result__item")
        seen = await drive("seen")
    assert seen["origins"] == [site] and seen["faults"] == []
