"""Atomic and durable writes of private files. After a crash or power cut, a file has its whole new content or its old one.

A draft in the same folder is written and synced, then renamed, and then the folder is synced.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

PRIVATE = 0o600
"""Default mode of files: readable and writable by their owner only."""


def write(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Writes a file atomically. It is on disk when the function returns. Its folder must exist. Raises OSError."""
    put(_draft_of(path, data, mode), path)


def write_once(path: Path, data: bytes) -> None:
    """Writes a file atomically unless it exists. Processes that start together then all read the content of the first one."""
    draft = _draft_of(path, data, PRIVATE)
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    _sync(path.parent)


def write_draft(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Writes and syncs a new file, but not its folder. Raises FileExistsError if the file exists, and OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno:
            error.filename = str(path)  # the system names no file where a write fails, as on a full disk
        raise


def put(draft: Path, path: Path) -> None:
    """Renames a synced draft to its final path and syncs the folder. It replaces an existing file. Both paths must be in one folder.
    Raises OSError."""
    draft.replace(path)
    _sync(path.parent)


def _draft_of(path: Path, data: bytes, mode: int) -> Path:
    draft = path.with_name(f".{path.name}.{threading.get_native_id()}.draft")
    draft.unlink(missing_ok=True)  # left by a killed thread with the same id
    write_draft(draft, data, mode)
    return draft


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
