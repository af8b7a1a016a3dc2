"""Sessions that were ended by signing out, kept until they would have expired, so that copies of their cookies are refused.

The list belongs to this process: another console with the same key doesn't know it.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from services.common.observability.telemetry import logger
from services.common.storage import durable


class Ended:
    """Ended sessions, also kept in a file if a path is given."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._until_s: dict[str, int] = {}
        """Expiry of each ended session, in s since 1970 UTC, by session id."""
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Loads the sessions that were ended before a restart. Raises ValueError if the file has another format."""
        if self._path and self._path.exists():
            content = json.loads(self._path.read_text())
            if not isinstance(content, dict) or not all(isinstance(until_s, int) for until_s in content.values()):
                raise ValueError(
                    f"{self._path} is not a list of ended sessions (session id -> seconds since 1970): remove it "
                    "and session.key, so that no ended session is valid; everybody signs in again"
                )
            self._until_s = content

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._until_s

    async def add(self, session_id: str, until_s: int) -> None:
        """Ends a session at once. If the file can't be written, logs a warning; the session then stays ended until a restart."""
        now_s = time.time()
        self._until_s = {id_: at_s for id_, at_s in self._until_s.items() if at_s > now_s} | {session_id: until_s}
        if self._path is None:
            return
        async with self._writing:
            try:
                await asyncio.to_thread(durable.write, self._path, json.dumps(self._until_s).encode())
            except OSError as error:
                logger().warning("ended_session_not_kept", error=error.strerror)
