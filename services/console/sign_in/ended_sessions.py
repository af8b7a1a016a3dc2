"""Sessions that were ended by signing out, so that a copy of their cookie is nobody's; each until it would have been over by itself.

This process's own: another console that has the same key doesn't know of them.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from services.common.observability.telemetry import logger
from services.common.storage import durable


class Ended:
    """Which those are, in a file where there is one."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._until_s: dict[str, int] = {}
        """By session id."""
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """What was ended before a restart. Raises ValueError where the file is none of this class's."""
        if self._path and self._path.exists():
            content = json.loads(self._path.read_text())
            if not isinstance(content, dict) or not all(isinstance(until_s, int) for until_s in content.values()):
                raise ValueError("isn't when each ended session would have been over")
            self._until_s = content

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._until_s

    async def add(self, session_id: str, until_s: int) -> None:
        """Ends a session at once. Where that can't be written down it holds until this process ends, and the log says so."""
        now_s = time.time()
        self._until_s = {id_: at_s for id_, at_s in self._until_s.items() if at_s > now_s} | {session_id: until_s}
        if self._path is None:
            return
        async with self._writing:
            try:
                await asyncio.to_thread(durable.write, self._path, json.dumps(self._until_s).encode())
            except OSError as error:
                logger().warning("ended_session_not_kept", error=error.strerror)
