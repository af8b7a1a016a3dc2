"""Files that are in place whole or not at all, whatever is killed or loses power meanwhile, and readable by their owner alone.

A draft beside the file is written and synced, then renamed, then the folder is synced: a name never stands for half a content.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

PRIVATE = 0o600


def write(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Puts a file into place, on disk when it returns; its folder must exist. Raises OSError."""
    put(_draft_of(path, data, mode), path)


def write_once(path: Path, data: bytes) -> None:
    """As `write`, but a file that is there stays: of processes that start together all read what the first one wrote."""
    draft = _draft_of(path, data, PRIVATE)
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    _sync(path.parent)


def write_draft(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Writes and syncs a file that isn't there yet. Raises OSError, FileExistsError where it is."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def put(draft: Path, path: Path) -> None:
    """Gives a synced draft its name, in place of what has it; both are in one folder. Raises OSError."""
    draft.replace(path)
    _sync(path.parent)


def _draft_of(path: Path, data: bytes, mode: int) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    draft.unlink(missing_ok=True)  # of a process with this id that was killed
    write_draft(draft, data, mode)
    return draft


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
