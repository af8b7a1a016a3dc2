"""Files for their owner alone, put into place whole."""

from __future__ import annotations

from pathlib import Path

from services.common.storage import durable


def write_private(path: Path, text: str) -> None:
    """Puts a file into place whole, with mode 0600."""
    durable.write(path, text.encode())
