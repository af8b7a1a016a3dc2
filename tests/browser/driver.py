"""A real browser for tests: Chromium, driven by drive.mjs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
ANSWERS_WITHIN_S = 40.0


class Browser:
    """Browser with named pages, each with its own cookies."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()

    async def __call__(self, command: str, **given: Any) -> Any:
        """Runs a command of drive.mjs and returns its result. Fails with the error of drive.mjs."""
        assert self._process.stdin and self._process.stdout
        async with self._lock, asyncio.timeout(ANSWERS_WITHIN_S):
            self._process.stdin.write(json.dumps({"command": command, **given}).encode() + b"\n")
            line = await self._process.stdout.readline()
        answer = json.loads(line)
        assert "error" not in answer, f"{command} {given}: {answer['error']}"
        return answer["result"]

    async def sign_in(self, page: str, url: str, role: str, language: str = "en") -> None:
        """Signs in on a page by the form, with the role as the name."""
        await self("open", page=page, url=f"{url}/sign-in", language=language)
        await self("fill", page=page, selector="input[name=name]", value=f"{role}-1")
        await self("click", page=page, selector=f"input[value={role}]")
        await self("click", page=page, selector="button.main")
        await self("wait", page=page, selector="nav a[aria-current]")


@asynccontextmanager
async def browser(trusted_keys: str = "") -> AsyncIterator[Browser]:
    """Opens a browser and closes it at the end. It accepts certificates whose keys have these comma-separated hashes."""
    environment = {**os.environ, "CHROMIUM": CHROMIUM, "TRUSTED_KEYS": trusted_keys}
    process = await asyncio.create_subprocess_exec(
        *("node", "drive.mjs"),
        cwd=HERE,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        yield Browser(process)
    finally:
        if process.stdin:
            process.stdin.close()
        await process.wait()
