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
COMMAND_LIMIT_S = 100.0
"""Maximum time of one command, s: drive.mjs ends it with an error that names it."""
ANSWER_LIMIT_S = COMMAND_LIMIT_S + 15.0
"""Time after which drive.mjs itself counts as stuck, s."""
CLOSE_LIMIT_S = 20.0


class Browser:
    """Browser with named pages, each with its own cookies."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()

    async def __call__(self, command: str, **given: Any) -> Any:
        """Runs a command of drive.mjs and returns its result.

        Fails with the error of drive.mjs. If drive.mjs doesn't answer at all, it is killed, so that neither this command nor a later
        one waits for ever.
        """
        assert self._process.stdin and self._process.stdout
        async with self._lock:
            try:
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    self._process.stdin.write(json.dumps({"command": command, **given}).encode() + b"\n")
                    line = await self._process.stdout.readline()
            except TimeoutError:
                self._process.kill()
                raise AssertionError(
                    f"{command} {given}: the browser didn't answer within {ANSWER_LIMIT_S} s"
                ) from None
        assert line, f"{command} {given}: the browser has ended, exit code {self._process.returncode}"
        answer = json.loads(line)
        assert "error" not in answer, f"{command} {given}: {answer['error']}"
        return answer["result"]

    async def until(self, page: str, condition: str, patience_s: float = 0.0) -> None:
        """Waits until a JavaScript expression is true on a page. Fails with the expression if it stays false for 20 s, or for longer
        than `patience_s`."""
        give_up_at = asyncio.get_running_loop().time() + patience_s
        while True:
            try:
                await self("until", page=page, condition=condition)
            except AssertionError:
                if asyncio.get_running_loop().time() > give_up_at:
                    raise
            else:
                return

    async def sign_in(self, page: str, url: str, role: str, language: str = "en", *, name: str = "") -> None:
        """Signs in on a page by the form, under this name or one that the role gives."""
        await self("open", page=page, url=f"{url}/sign-in", language=language)
        await self("fill", page=page, selector="input[name=name]", value=name or f"{role}-1")
        await self("click", page=page, selector=f"input[value={role}]")
        await self("click", page=page, selector="button.main")
        await self("wait", page=page, selector="nav a[aria-current]")


@asynccontextmanager
async def browser(trusted_keys: str = "") -> AsyncIterator[Browser]:
    """Opens a browser and closes it at the end. It accepts certificates whose keys have these comma-separated hashes."""
    environment = {**os.environ, "CHROMIUM": CHROMIUM, "TRUSTED_KEYS": trusted_keys}
    environment["COMMAND_LIMIT_MS"] = str(round(COMMAND_LIMIT_S * 1000))
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
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
