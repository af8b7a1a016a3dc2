"""Write files atomically, readable by their owner only."""

from __future__ import annotations

from pathlib import Path

from services.common.storage import durable


def write_private(path: Path, text: str) -> None:
    """Writes a file atomically, with mode 0600."""
    durable.write(path, text.encode())
