"""Pictures of pages for the documents."""

from __future__ import annotations

import os
from pathlib import Path

from tests.browser.driver import Browser

ROOT = Path(__file__).parents[3]


async def shot(seen: Browser, page: str, name: str) -> None:
    """Saves a picture of a page in the folder that TANDEM_SHOTS names; without it, nothing."""
    if folder := os.environ.get("TANDEM_SHOTS"):
        await seen("shot", page=page, path=f"{ROOT / folder}/{name}.png")
