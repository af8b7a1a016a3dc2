"""Private files that survive a crash with their whole new content or their old one, and words for the system's errors about files.

A draft in the same folder is written and synced, then renamed, and then the folder is synced.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

# ── writes ────────────────────────────────────────────────────────────────────────────────────────────────────────────

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


# ── words for errors ──────────────────────────────────────────────────────────────────────────────────────────────────

_WORDS = {
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "is a folder; name a file",
    errno.ENOTDIR: "lies in something that isn't a folder",
    errno.EEXIST: "exists, and isn't a folder",
    errno.EACCES: "this user has no right to it",
    errno.EPERM: "this user has no right to it",
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the disk is read-only",
}
"""What a person can do something about, by the number of the system's error."""


def reason_of(error: OSError) -> str:
    """Why a file can't be read or written."""
    return _WORDS.get(error.errno or 0) or error.strerror or type(error).__name__
